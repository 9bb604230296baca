//! Guest execution and memory: everything in the one Bulkhead process that may touch guest RAM.
//!
//! Rooms, from the bottom up. `cpu` is the processor's architectural state and the rules of protection; it knows no
//! engine. `mmu` owns guest RAM and translates addresses. `engine` executes instructions over both. `chipset` models
//! the board's chips, `virtio` its devices, which live in other processes; `boot` puts a kernel into RAM, and `machine`
//! is the only room that imports every other.
//!
//! The process is given descriptors for all it uses: nothing here opens a file or a socket.

pub mod boot;
pub mod chipset;
pub mod cpu;
pub mod engine;
pub mod inherit;
pub mod machine;
pub mod mmu;
pub mod virtio;

pub use ipc::outcome;

/// This process's end of the conversation with the broker.
pub type Uplink = ipc::uplink::Uplink<ipc::control::FromVmm, ipc::control::ToVmm>;
