//! What every vhost-user back end needs, whatever it serves: [`vring`], a virtqueue as the vhost-user library keeps it;
//! [`inherit`] takes descriptors over; [`complain`] keeps a guest from filling the log. Knows no device type.

pub mod complain;
pub mod inherit;
pub mod vring;
