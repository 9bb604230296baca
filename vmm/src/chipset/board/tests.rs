use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::chipset::platform as at;

mod ticks;

struct Bench {
    board: Arc<Board>,
    lines: Arc<Lines>,
    ns: Arc<AtomicU64>,
    /// Calls of the three hooks.
    calls: [Arc<AtomicUsize>; 3],
}

fn bench() -> Bench {
    bench_with(1).0
}

/// A board with `cpus` processors, and all their wires.
fn bench_with(cpus: usize) -> (Bench, Vec<Arc<Lines>>) {
    let ns = Arc::new(AtomicU64::new(1_000_000));
    let lines: Vec<Arc<Lines>> = (0..cpus).map(|_| Arc::default()).collect();
    let calls: [Arc<AtomicUsize>; 3] = Default::default();
    let hook = |i: usize| -> Option<Hook> {
        let calls = calls[i].clone();
        Some(Arc::new(move || {
            calls.fetch_add(1, Ordering::Relaxed);
        }))
    };
    let board = Board::new(BoardConfig {
        ram: Arc::new(GuestRam::new(16 << 20).unwrap()),
        lines: lines.clone(),
        clock: Clock::manual(ns.clone()),
        utc_ns: 1_700_000_000_000_000_000,
        hooks: Hooks { deadline: hook(0), output: hook(1), input_space: hook(2) },
    });
    (Bench { board, lines: lines[0].clone(), ns, calls }, lines)
}

impl Bench {
    fn out(&self, port: u16, value: u8) {
        self.board.port_write(0, port, 1, u32::from(value));
    }
    fn inb(&self, port: u16) -> u8 {
        self.board.port_read(0, port, 1) as u8
    }
    fn pass(&self, ns: u64) {
        self.ns.fetch_add(ns, Ordering::Relaxed);
        self.board.advance();
    }
    /// The 8259 pair as Linux programs it, all unmasked.
    fn start_pic(&self) {
        for (port, bytes) in [(0x20, [0x11, 0x30, 4, 1, 0]), (0xa0, [0x11, 0x38, 2, 1, 0])] {
            self.out(port, bytes[0]);
            bytes[1..].iter().for_each(|b| self.out(port + 1, *b));
        }
    }
    fn start_pit(&self, count: u16) {
        self.out(0x43, 0x34);
        count.to_le_bytes().into_iter().for_each(|b| self.out(0x40, b));
    }
    fn apic(&self, offset: u64, value: u32) {
        self.board.mmio_write(0, at::LAPIC_BASE + offset, 4, u64::from(value));
    }
    fn ioapic(&self, pin: u8, low: u32) {
        for (index, value) in [(0x10 + 2 * pin, low), (0x11 + 2 * pin, 0)] {
            self.board.mmio_write(0, at::IOAPIC_BASE, 4, u64::from(index));
            self.board.mmio_write(0, at::IOAPIC_BASE + 0x10, 4, u64::from(value));
        }
    }
}

#[test]
fn pit_through_the_virtual_wire() {
    let b = bench();
    b.start_pit(11932);
    assert_eq!(b.board.next_deadline(), None, "the pair starts masked");
    b.start_pic();
    assert_eq!(b.board.acknowledge(0), None, "ICW1 forgets edges");
    let due = b.board.next_deadline().unwrap();
    assert!(due > 1_000_000 + 9_990_000 && due < 1_000_000 + 10_010_000);
    b.pass(due - 1_000_000);
    assert!(b.lines.intr());
    assert_eq!(b.board.acknowledge(0), Some(0x30));
    assert!(!b.lines.intr());
    b.out(0x21, 0xff);
    assert_eq!(b.board.next_deadline(), None, "masked everywhere: nobody is woken");
    b.pass(50_000_000);
    b.out(0x20, 0x20);
    b.out(0x21, 0x00);
    assert_eq!(b.board.acknowledge(0), Some(0x30), "the 8259 latches while masked");
}

#[test]
fn pit_through_the_ioapic() {
    let b = bench();
    b.start_pic();
    b.out(0x21, 0xff);
    b.out(0xa1, 0xff);
    b.apic(0xf0, 0x1ff);
    b.start_pit(1193);
    b.pass(10_000_000);
    b.ioapic(2, 0x50);
    assert!(!b.lines.intr(), "edges on a masked pin are lost");
    let due = b.board.next_deadline().unwrap();
    b.pass(due - b.ns.load(Ordering::Relaxed));
    assert_eq!(b.board.acknowledge(0), Some(0x50));
    b.pass(1_000_000);
    assert!(!b.lines.intr(), "in service");
    b.apic(0xb0, 0);
    assert_eq!(b.board.acknowledge(0), Some(0x50));
    b.apic(0xb0, 0);
    assert_eq!(b.board.acknowledge(0), None);
}

#[test]
fn level_lines_come_again_until_they_fall() {
    let b = bench();
    b.apic(0xf0, 0x1ff);
    b.ioapic(at::pci_irq(1, 0), 0x8061);
    b.board.set_pci_irq(1, 0, true);
    assert_eq!(b.board.acknowledge(0), Some(0x61));
    assert!(!b.lines.intr());
    b.apic(0xb0, 0);
    assert_eq!(b.board.acknowledge(0), Some(0x61));
    b.board.set_pci_irq(1, 0, false);
    b.apic(0xb0, 0);
    assert!(!b.lines.intr());
}

#[test]
fn apic_timer_and_deadline_hook() {
    let b = bench();
    b.apic(0xf0, 0x1ff);
    b.apic(0x3e0, 0xb);
    b.apic(0x320, 0x40);
    assert_eq!((b.board.next_deadline(), b.calls[0].load(Ordering::Relaxed)), (None, 0));
    b.apic(0x380, 5000);
    assert_eq!(b.calls[0].load(Ordering::Relaxed), 1);
    assert_eq!(b.board.next_deadline(), Some(1_005_000));
    b.apic(0x380, 9000);
    assert_eq!(b.calls[0].load(Ordering::Relaxed), 1, "later is not news");
    b.pass(9000);
    assert_eq!(b.board.acknowledge(0), Some(0x40));
    b.apic(0xb0, 0);
    b.apic(0x320, 0x4_0041);
    assert!(b.board.apic_msr_write(0, 0x6e0, 2_000_000));
    assert_eq!(b.board.apic_msr_read(0, 0x6e0), Some(2_000_000));
    assert_eq!(b.board.next_deadline(), Some(2_000_000));
    b.pass(1_000_000);
    assert_eq!(b.board.acknowledge(0), Some(0x41));
    b.apic(0xb0, 0);
    assert!(b.board.apic_msr_write(0, 0x6e0, 1));
    assert_eq!(b.board.acknowledge(0), Some(0x41), "a deadline in the past comes at once");
}

#[test]
fn msi_and_self_ipi() {
    let b = bench();
    b.apic(0xf0, 0x1ff);
    b.board.deliver_msi(0xfee0_0000, 0x4071);
    b.apic(0x300, 0x4_0092);
    assert_eq!(b.board.acknowledge(0), Some(0x92));
    b.apic(0xb0, 0);
    assert_eq!(b.board.acknowledge(0), Some(0x71));
    b.board.deliver_msi(0xfee0_0000, 0x400);
    assert!(b.lines.nmi());
}

#[test]
fn messages_between_processors() {
    let (b, lines) = bench_with(3);
    for cpu in 0..3 {
        b.board.mmio_write(cpu, at::LAPIC_BASE + 0xf0, 4, 0x1ff);
    }
    b.apic(0x310, 1 << 24);
    b.apic(0x300, 0x4500);
    b.apic(0x300, 0x4608);
    let events: Vec<_> = std::iter::from_fn(|| b.board.take_event()).collect();
    assert_eq!(events, [BoardEvent::Init(1), BoardEvent::StartUp(1, 8)]);
    b.apic(0x300, 0xc_0055);
    assert!(!lines[0].intr() && !lines[1].intr() && lines[2].intr(), "INIT disabled processor 1's APIC");
    assert_eq!((b.board.acknowledge(2), b.board.acknowledge(0)), (Some(0x55), None));
    b.board.deliver_msi(0xfeef_f000, 0x0166);
    b.board.deliver_msi(0xfeef_f008, 0x0067);
    let vectors = [0, 1, 2].map(|cpu| b.board.acknowledge(cpu));
    assert_eq!(vectors, [Some(0x67), None, None], "both went to the one that is enabled and idle");
}

#[test]
fn serial_both_ways() {
    let b = bench();
    b.out(at::COM1, b'h');
    b.out(at::COM1, b'i');
    assert_eq!(b.calls[1].load(Ordering::Relaxed), 1, "told once");
    let mut out = Vec::new();
    b.board.take_serial_output(&mut out);
    assert_eq!(out, b"hi");
    b.out(at::COM1, b'!');
    assert_eq!(b.calls[1].load(Ordering::Relaxed), 2);
    assert!(b.board.serial_input(&[b'x'; 8192]) < 8192);
    assert_eq!(b.calls[2].load(Ordering::Relaxed), 0);
    assert_eq!(b.inb(at::COM1), b'x');
    assert_eq!(b.calls[2].load(Ordering::Relaxed), 1);
}

#[test]
fn events_reach_the_machine() {
    let b = bench();
    b.board.port_write(0, at::DEBUG_EXIT, 4, 0x10);
    assert!(b.lines.take_request());
    b.out(at::KBD_COMMAND, 0xfe);
    b.out(at::PORT_92, 0);
    b.out(at::RESET_CONTROL, 2);
    b.out(at::RESET_CONTROL, 6);
    b.board.port_write(0, at::PM_BASE + 4, 2, 0x2000);
    let events: Vec<_> = std::iter::from_fn(|| b.board.take_event()).collect();
    use BoardEvent::*;
    assert_eq!(events, [DebugExit(0x10), Reset, A20Changed(false), Reset, PowerOff]);
    assert!(!b.board.a20());
    b.board.reset();
    assert!(b.board.a20());
}

#[test]
fn power_button_raises_sci() {
    let b = bench();
    b.start_pic();
    b.out(at::SMI_CMD, at::ACPI_ENABLE);
    b.board.port_write(0, at::PM_BASE + 2, 2, 0x100);
    assert_eq!(b.board.port_read(0, at::PM_BASE + 4, 2) & 1, 1);
    b.board.press_power_button();
    assert_eq!(b.board.acknowledge(0), Some(0x39));
    b.out(at::PM_BASE + 1, 1);
    assert_eq!(b.board.port_read(0, at::PM_BASE, 2), 0);
}

#[test]
fn hpet_replaces_the_pit() {
    let b = bench();
    b.start_pic();
    b.out(0x20, 0x20);
    b.start_pit(100);
    let hpet = |offset, value| b.board.mmio_write(0, at::HPET_BASE + offset, 8, value);
    hpet(0x10, 3);
    while b.board.acknowledge(0).is_some() {
        b.out(0x20, 0x20);
    }
    let counter = b.board.mmio_read(0, at::HPET_BASE + 0xf0, 8);
    hpet(0x100, 4);
    hpet(0x108, counter + 1000);
    assert_eq!(b.board.next_deadline(), Some(1_010_000), "the PIT's faster ticks do not count");
    b.pass(10_000);
    assert_eq!(b.board.acknowledge(0), Some(0x30));
}

#[test]
fn nothing_there_reads_as_ones() {
    let b = bench();
    assert_eq!(b.board.port_read(0, 0x2f8, 2), 0xffff);
    assert_eq!(b.board.port_read(0, 0x80, 1), 0xff);
    assert_eq!(b.board.mmio_read(0, 0xd000_0000, 8), u64::MAX);
    assert_eq!(b.board.mmio_read(7, at::LAPIC_BASE, 4), 0xffff_ffff);
    assert_eq!(b.board.apic_msr_read(0, 0x900), None);
}

struct Echo(Mutex<crate::chipset::ConfigSpace>);

impl PciFunction for Echo {
    fn config_read(&self, offset: u8, width: u8) -> u32 {
        self.0.lock().unwrap().read(offset, width)
    }
    fn config_write(&self, offset: u8, width: u8, value: u32) {
        self.0.lock().unwrap().write(offset, width, value);
    }
    fn bars(&self) -> Vec<crate::chipset::Bar> {
        self.0.lock().unwrap().bars()
    }
    fn bar_read(&self, index: u8, offset: u64, _: u8) -> u64 {
        u64::from(index) << 32 | offset
    }
    fn bar_write(&self, _: u8, _: u64, _: u8, _: u64) {}
    fn reset(&self) {}
}

fn echo() -> Arc<dyn PciFunction> {
    let mut space = crate::chipset::ConfigSpace::new(0x1af4, 0x1041, 0x02_0000, 1);
    space.add_bar(1, BarKind::Memory, 0x1000);
    Arc::new(Echo(Mutex::new(space)))
}

#[test]
fn pci_functions_of_other_rooms() {
    let b = bench();
    assert!(!b.board.attach_pci(0, echo()), "the host bridge is there");
    assert!(b.board.attach_pci(2 << 3, echo()) && !b.board.attach_pci(2 << 3, echo()));
    let config = |register: u32, value| {
        b.board.port_write(0, at::PCI_ADDRESS, 4, 0x8000_1000 | register);
        b.board.port_write(0, at::PCI_DATA, 4, value);
    };
    config(0x14, 0xe000_0000);
    assert_eq!(b.board.mmio_read(0, 0xe000_0010, 4), 0xffff_ffff, "not enabled");
    config(4, 2);
    assert_eq!(b.board.mmio_read(0, 0xe000_0010, 4), 0x1_0000_0010);
    assert_eq!(b.board.mmio_read(0, 0xe000_0ffe, 4), 0xffff_ffff, "crosses the end");
}

#[test]
fn each_keyboard_byte_is_an_edge() {
    let b = bench();
    b.start_pic();
    b.out(at::KBD_DATA, 0xf2);
    for byte in [0xfa, 0xab, 0x83] {
        assert_eq!(b.board.acknowledge(0), Some(0x31));
        assert_eq!(b.inb(at::KBD_DATA), byte);
        b.out(0x20, 0x20);
    }
    assert_eq!(b.board.acknowledge(0), None);
}

#[test]
fn a_masked_apic_timer_expires_unheard() {
    let b = bench();
    b.apic(0xf0, 0x1ff);
    b.apic(0x320, 0x1_0040);
    b.apic(0x380, 5000);
    b.pass(1_000_000);
    b.apic(0x320, 0x40);
    assert_eq!((b.board.next_deadline(), b.board.acknowledge(0)), (None, None));
}

/// Every register of every chip takes every value without harm, at any time, and the board stays quick.
#[test]
fn random_accesses_do_no_harm() {
    let mut rng = SmallRng::seed_from_u64(0x8259_8254);
    for cpus in [1, 1, 1, 3] {
        let (b, _) = bench_with(cpus);
        assert!(b.board.attach_pci(3 << 3, echo()));
        for _ in 0..100_000 {
            random_step(&b, &mut rng);
        }
    }
}

fn random_step(b: &Bench, rng: &mut SmallRng) {
    const BASES: [u64; 4] = [at::LAPIC_BASE, at::IOAPIC_BASE, at::HPET_BASE, 0xe000_0000];
    const PORTS: [(u16, u16); 12] = [
        (0x20, 2),
        (0xa0, 2),
        (0x40, 4),
        (0x60, 5),
        (0x70, 2),
        (0x3f8, 8),
        (0x4d0, 2),
        (0x510, 12),
        (0xcf8, 8),
        (0x600, 64),
        (0x90, 0x28),
        (0, 0xffff),
    ];
    let cpu = if rng.random_bool(0.8) { 0 } else { rng.random_range(0..4) };
    let width = [1u8, 2, 4, 8][rng.random_range(0..4)];
    let value = match rng.random_range(0..3) {
        0 => rng.random::<u64>(),
        1 => rng.random_range(0..256),
        _ => 1 << rng.random_range(0..64),
    };
    let (base, length) = PORTS[rng.random_range(0..PORTS.len())];
    let port = base.wrapping_add(rng.random_range(0..length));
    let address = BASES[rng.random_range(0..BASES.len())] + rng.random_range(0..0x1000);
    let address = if rng.random_bool(0.7) { address & !15 } else { address };
    let io_width = width.min(4);
    match rng.random_range(0..12) {
        0..=2 => b.board.port_write(cpu, port, io_width, value as u32),
        3 => _ = b.board.port_read(cpu, port, io_width),
        4..=5 => b.board.mmio_write(cpu, address, width, value),
        6 => _ = b.board.mmio_read(cpu, address, width),
        7 => _ = b.board.acknowledge(cpu),
        8 => {
            let msr = [0x1b, 0x6e0, 0x800 + rng.random_range(0..0x40)][usize::from(port) % 3];
            _ = b.board.apic_msr_write(cpu, msr, value);
        }
        9 => _ = b.board.apic_msr_read(cpu, 0x800 + rng.random_range(0..0x100)),
        10 => b.pass(1 << rng.random_range(0..36)),
        _ => random_host_step(b, rng, value),
    }
}

fn random_host_step(b: &Bench, rng: &mut SmallRng, value: u64) {
    let mut out = Vec::new();
    match rng.random_range(0..8) {
        0 => _ = b.board.serial_input(&[value as u8; 100]),
        1 => _ = b.board.take_serial_output(&mut out),
        2 => b.board.set_irq(value as u8, rng.random()),
        3 => b.board.set_pci_irq(value as u8, (value >> 8) as u8, rng.random()),
        4 => b.board.deliver_msi(0xfee0_0000 | value & 0xfffff, value as u32),
        5 => while b.board.take_event().is_some() {},
        6 if value & 15 == 0 => b.board.reset(),
        _ => {
            let now = b.ns.load(Ordering::Relaxed);
            b.board.advance();
            if let Some(due) = b.board.next_deadline() {
                assert!(due > now, "what was due at {due} was not served at {now}");
            }
        }
    }
}
