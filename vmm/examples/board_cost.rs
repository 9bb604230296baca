//! What an access to a chip costs: `cargo run --release -p vmm --example board_cost`.

use std::sync::Arc;
use std::time::Instant;

use vmm::chipset::{Board, BoardConfig, Clock, Hooks, platform as at};
use vmm::cpu::{Bus, Lines};
use vmm::mmu::{GuestRam, RamError};

const TIMES: u32 = 1_000_000;

fn main() -> Result<(), RamError> {
    let lines = vec![Arc::new(Lines::default())];
    let ram = Arc::new(GuestRam::new(16 << 20)?);
    let board = Board::new(BoardConfig { ram, lines, clock: Clock::host(), utc_ns: 0, hooks: Hooks::default() });
    let accesses: [(&str, &dyn Fn()); 4] = [
        ("PM timer read", &|| _ = board.port_read(0, at::PM_BASE + 8, 4)),
        ("8259 mask write", &|| board.port_write(0, 0x21, 1, 0xff)),
        ("APIC EOI", &|| board.mmio_write(0, at::LAPIC_BASE + 0xb0, 4, 0)),
        ("HPET counter read", &|| _ = board.mmio_read(0, at::HPET_BASE + 0xf0, 4)),
    ];
    for (name, access) in accesses {
        let start = Instant::now();
        (0..TIMES).for_each(|_| access());
        println!("{name}: {} ns", start.elapsed().as_nanos() / u128::from(TIMES));
    }
    Ok(())
}
