//! One disk of a virtual machine, in a process of its own: a vhost-user-blk back end.
//!
//! From the bottom up: `request` makes sense of a guest's descriptor chain and does nothing else; `disk` is the image;
//! `device` carries a request out on a disk; `queue` does that for all chains of a virtqueue; `backend` connects queues to
//! vhost-user; `server` accepts connections. `config` is what the guest reads of the device, `control` takes commands from
//! whoever started the process, `announce` tells a front end of a new size, `options` is the command line. `confined` is the life of the process that `bulkhead run` starts for each disk.
//!
//! # Confinement
//!
//! The order is: take descriptors over, open and lock the image (only with `--path`), start the control thread, accept one
//! connection, start its threads. After [`server::serve`] has accepted, nothing is opened, no socket is made and no thread
//! is started. What that needs of the kernel, call by call with reasons, is `policy/profiles/dev-blk.toml`.
//!
//! Reads and writes are synchronous. io_uring was measured against them and is not used: see `queue`.

pub mod announce;
pub mod backend;
pub mod config;
pub mod confined;
pub mod control;
pub mod device;
pub mod disk;
#[cfg(feature = "faulty")]
pub mod faulty;
pub mod options;
pub mod queue;
pub mod request;
pub mod server;
