//! One network card of a virtual machine, in a process of its own: a vhost-user-net back end.
//!
//! From the bottom up: `queue` takes packets out of a virtqueue and puts them into one; `user` is the one kind of link that
//! there is, the host's network by NAT; `card` moves packets between queues and link; `backend` connects that to vhost-user;
//! `config` is what the guest reads of the card. `confined` is the life of the process that `bulkhead run` starts for each
//! card.
//!
//! # Confinement
//!
//! The process can make no socket, nor connect or bind one, and cannot send to an address. For each flow it asks the broker
//! by a message of fixed size (`ipc::flow`), which dials what policy allows. What it may ask of the kernel, call by call with
//! reasons, is `policy/profiles/dev-net.toml`.

pub mod backend;
pub mod card;
pub mod config;
pub mod confined;
pub mod queue;
pub mod user;
