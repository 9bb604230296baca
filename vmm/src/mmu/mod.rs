//! Guest memory: RAM, the page walk, and a processor's software view of both.
//!
//! `ram` owns the one sealed memfd and the one linear mapping of it that Rust code may use. `walk` is the manual's page
//! walk. `tlb` and `access` are how Rust code (the interpreter, the rules of protection, assists) loads and stores at
//! guest linear addresses. Shadow windows, by which translated code reaches the same memory, live beside them.

mod access;
mod ram;
mod tlb;
mod walk;

pub use access::{Datum, Privilege};
pub use ram::{FRAME_SHIFT, FRAME_SIZE, GuestRam, LOW_RAM_LIMIT, RamError};
pub use tlb::{Flush, Mmu};
pub use walk::{Access, Translation, fault_code, pte};
