use super::*;

#[test]
fn identity_and_counter() {
    let mut h = Hpet::default();
    assert_eq!((h.read(0, 0), h.read(4, 0)), (0x8086_a201, 10_000_000));
    h.write(0xf0, 500, 0);
    assert_eq!(h.read(0xf0, 1_000_000), 500, "halted");
    h.write(0x10, 1, 1_000_000);
    assert_eq!(h.read(0xf0, 1_001_000), 600);
    h.write(0xf4, 7, 1_001_000);
    assert_eq!((h.read(0xf0, 1_002_000), h.read(0xf4, 1_002_000)), (700, 7));
}

#[test]
fn one_shot_edge() {
    let mut h = Hpet::default();
    h.write(0x10, 1, 0);
    h.write(0x120, ENABLE | 20 << 9, 0);
    assert!(h.deadline(|_| true) > 1 << 62);
    h.write(0x128, 1000, 0);
    h.write(0x12c, 0, 0);
    assert_eq!(h.deadline(|_| true), 10_000);
    h.advance(9_999);
    assert_eq!(h.take_pulse(1), None);
    h.advance(10_000);
    assert_eq!((h.take_pulse(1), h.take_pulse(1)), (Some(Wire::Pin(20)), None));
    assert_eq!(h.deadline(|_| true), NEVER);
}

#[test]
fn legacy_periodic_keeps_phase() {
    let mut h = Hpet::default();
    h.write(0x100, ENABLE | PERIODIC | VALUE_SET, 0);
    h.write(0x108, 100_000, 0);
    h.write(0x100, ENABLE | PERIODIC | VALUE_SET, 0);
    h.write(0x10c, 0, 0);
    h.write(0x108, 50_000, 0);
    h.write(0x10, 3, 0);
    assert!(h.replaces_legacy());
    assert_eq!(h.deadline(|_| true), 1_000_000);
    h.advance(1_000_000);
    assert_eq!(h.take_pulse(0), Some(Wire::Isa(0)));
    assert_eq!(h.deadline(|_| true), 1_500_000);
    h.advance(9_300_000);
    assert_eq!((h.take_pulse(0), h.take_pulse(0)), (Some(Wire::Isa(0)), None));
    assert_eq!(h.deadline(|_| true), 9_500_000);
}

#[test]
fn level_interrupts_by_status() {
    let mut h = Hpet::default();
    h.write(0x10, 1, 0);
    h.write(0x140, ENABLE | LEVEL | BITS_32 | 21 << 9, 0);
    h.write(0x148, 100, 0);
    h.advance(1000);
    assert_eq!(h.level(2), Some(Wire::Pin(21)));
    assert_eq!(h.deadline(|_| true), NEVER, "the line is up already");
    h.write(0x20, 4, 1000);
    assert_eq!(h.level(2), None);
    assert_eq!(h.deadline(|_| true), ((1u64 << 32) + 100) * 10, "32-bit comparators match again at the wrap");
}

#[test]
fn disabled_comparators_wake_nobody() {
    let mut h = Hpet::default();
    h.write(0x10, 1, 0);
    h.write(0x108, 100, 0);
    assert_eq!(h.deadline(|_| true), NEVER);
}
