//! What the processes of a virtual machine say to each other.
//!
//! Knows the standard library, nix, postcard and memfd; nothing of what the messages are about. [`channel`] carries one
//! message a packet, with descriptors; [`control`] has the messages and the one table that says which is permitted when;
//! [`uplink`] is a confined process's end of its conversation with the broker; [`shm`] makes sealed memory to share; [`spin`]
//! is how long one looks for the other before it sleeps; [`telemetry`] takes what a confined process logs to the broker, which
//! alone can write it anywhere; [`flow`] is how a network card asks for connections; [`specimen`] is a request that crashed its device, as it is kept; [`outcome`] is how a machine
//! ends.
//!
//! Every byte from another process is hostile: a packet has a maximum size, must be of our version, must be the next in
//! order, must decode completely, must carry exactly the descriptors that it says, and must be permitted in the state
//! that the conversation is in. What is not ends the conversation, and with it the peer; never us.

pub mod channel;
pub mod control;
pub mod flow;
pub mod frame;
pub mod outcome;
pub mod rate;
pub mod scm;
pub mod shm;
pub mod specimen;
pub mod spin;
pub mod telemetry;
pub mod uplink;

pub use channel::{Channel, ChannelError};
