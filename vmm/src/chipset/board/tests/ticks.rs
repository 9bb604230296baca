//! Periodic ticks that the host was late for: a guest that counts them finds them all.

use super::*;

/// Time that Linux's `timer_irq_works` waits for five ticks of 4 ms, and for how much of it the processor's thread is
/// not running.
const WAIT_NS: u64 = 40_000_000;
const AWAY_NS: u64 = 38_000_000;
/// No vectors.
const NONE: [u8; 0] = [];

/// Takes interrupts until none is left, ending each with `end`; their vectors.
fn drain(b: &Bench, end: impl Fn()) -> Vec<u8> {
    std::iter::from_fn(|| b.board.acknowledge(0).inspect(|_| end())).take(1000).collect()
}

/// A comparator-0 tick of 4 ms on IRQ 0, as Linux programs it.
fn start_hpet(b: &Bench) {
    let hpet = |offset, value| b.board.mmio_write(0, at::HPET_BASE + offset, 4, value);
    hpet(0x10, 3);
    // Interrupts on, periodic, the accumulator to be set, 32 bits.
    hpet(0x100, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8);
    let counter = b.board.mmio_read(0, at::HPET_BASE + 0xf0, 8);
    hpet(0x108, counter + 400_000);
    hpet(0x108, 400_000);
}

fn start_apics(b: &Bench) {
    b.out(0x21, 0xff);
    b.out(0xa1, 0xff);
    b.apic(0xf0, 0x1ff);
    b.ioapic(2, 0x50);
    b.ioapic(8, 0x58);
}

#[test]
fn a_processor_that_was_away_gets_its_pit_ticks() {
    let b = bench();
    b.start_pic();
    b.start_pit(4773);
    drain(&b, || b.out(0x20, 0x20));
    b.pass(AWAY_NS);
    let ticks = drain(&b, || b.out(0x20, 0x20));
    assert_eq!(ticks, [0x30; 9]);
    b.pass(WAIT_NS - AWAY_NS);
    assert_eq!(drain(&b, || b.out(0x20, 0x20)), NONE, "none twice");
}

#[test]
fn a_processor_that_was_away_gets_its_hpet_ticks() {
    let b = bench();
    start_apics(&b);
    start_hpet(&b);
    b.pass(AWAY_NS);
    assert_eq!(drain(&b, || b.apic(0xb0, 0)), [0x50; 9]);
    b.pass(WAIT_NS - AWAY_NS);
    assert_eq!(drain(&b, || b.apic(0xb0, 0)), [0x50], "the phase is kept");
}

#[test]
fn a_processor_that_was_away_gets_its_rtc_ticks() {
    let b = bench();
    start_apics(&b);
    for (index, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
        b.out(at::RTC_INDEX, index);
        b.out(at::RTC_DATA, value);
    }
    b.out(at::RTC_INDEX, 0x0c);
    b.inb(at::RTC_DATA);
    drain(&b, || b.apic(0xb0, 0));
    b.pass(10_000_000);
    let ticks = drain(&b, || {
        assert_eq!(b.inb(at::RTC_DATA), 0xc0);
        b.apic(0xb0, 0);
    });
    assert!(ticks.len() == 10 || ticks.len() == 11, "{} of 1024 Hz in 10 ms", ticks.len());
}

#[test]
fn a_processor_that_takes_no_interrupts_loses_ticks_as_on_a_real_board() {
    let b = bench();
    start_apics(&b);
    start_hpet(&b);
    (0..9).for_each(|_| b.pass(4_000_000));
    assert_eq!(drain(&b, || b.apic(0xb0, 0)), [0x50]);
}

#[test]
fn masked_and_reprogrammed_timers_owe_nothing() {
    let b = bench();
    start_apics(&b);
    start_hpet(&b);
    b.ioapic(2, 0x1_0050);
    b.pass(AWAY_NS);
    b.ioapic(2, 0x50);
    assert_eq!(drain(&b, || b.apic(0xb0, 0)), NONE);
    b.pass(AWAY_NS);
    b.board.mmio_write(0, at::HPET_BASE + 0x100, 4, 1 << 2 | 1 << 3 | 1 << 8);
    assert_eq!(drain(&b, || b.apic(0xb0, 0)), [0x50], "the one that was raised before");
}

#[test]
fn a_machine_that_was_stopped_does_not_make_good_for_hours() {
    let b = bench();
    start_apics(&b);
    start_hpet(&b);
    b.pass(3_600_000_000_000);
    assert_eq!(drain(&b, || b.apic(0xb0, 0)).len(), 257);
}
