//! Tests of the interpreter: assembled instructions on a processor with a bus that answers with what it was told.

mod boundary;
mod garbage;
mod harness;
mod integer;
mod paging;
mod real;
mod system;

pub(super) use harness::{CODE, DATA, Machine, STACK};
