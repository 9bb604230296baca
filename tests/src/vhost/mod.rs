//! vhost-user back ends for tests, and a driver for the front end's other side.
//!
//! `session` speaks the protocol, written from its specification with nothing of the front end under test; it asks a
//! [`session::Device`] what to do. `disk` is an honest one, with switches for single faults; `hostile` writes garbage
//! wherever it can reach. `driver` is a guest at register level: it negotiates, submits, and looks at what comes back.

pub mod disk;
pub mod driver;
pub mod hostile;
pub mod session;
