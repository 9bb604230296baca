//! Whole-system tests of Bulkhead: what they run, where they get it, and how they watch it.
//!
//! `debian` fetches Debian's own i386 kernels, busybox and python through apt; `guests` compiles the small test programs;
//! `modules` picks the kernel modules that a guest loads; `initramfs` packs all of it into an image; `monitor` runs that image on Bulkhead or on QEMU and `console` talks to its
//! serial line; `script` says what is run in the guest and natively, and compares. `bare` builds guests without any
//! operating system. `oracle` is this host's own processor, `generate` makes random instructions for it, and
//! `differential` compares. `red_team` tries to get out of confinement, `trace` sees which rules of a profile are used,
//! `processes` looks at a machine's processes, `operator` types commands, `net` is what a network card leads to. `workspace` knows where the repository's own binaries are.

pub mod bare;
pub mod bench;
pub mod console;
pub mod debian;
pub mod differential;
pub mod disks;
pub mod generate;
pub mod guests;
pub mod hostile;
pub mod image;
pub mod initramfs;
pub mod lock;
pub mod modules;
pub mod monitor;
pub mod net;
pub mod operator;
pub mod oracle;
pub mod processes;
pub mod red_team;
pub mod script;
pub mod trace;
pub mod vhost;
pub mod workspace;
