//! Guest memory: RAM, the page walk, and a processor's software view of both.
//!
//! `ram` owns the one sealed memfd and the one linear mapping of it that Rust code may use. `walk` is the manual's page
//! walk. `tlb` and `access` are how Rust code (the interpreter, the rules of protection, assists) loads and stores at
//! guest linear addresses. Shadow windows, by which translated code reaches the same memory, live beside them.

mod access;
mod ram;
mod shadow;
mod tlb;
mod walk;
mod window;
mod writers;

pub use access::{Datum, Privilege};
pub use ram::{FRAME_SHIFT, FRAME_SIZE, GuestRam, LOW_RAM_LIMIT, RamError};
pub use shadow::{KERNEL_SPLIT, Resolution, Rights, Shadow, ShadowError};
pub use tlb::{Flush, Mmu};
pub use walk::{Access, LeafEntry, PHYSICAL_BITS, Translation, fault_code, leaf_entry, peek, pte, walk};
pub use window::GAP;
