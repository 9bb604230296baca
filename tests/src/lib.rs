//! Whole-system tests of Bulkhead.
