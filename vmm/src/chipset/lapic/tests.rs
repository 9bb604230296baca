use super::*;
use crate::chipset::NEVER;

fn enabled() -> Lapic {
    let mut a = Lapic::new(0);
    a.mmio_write(0xf0, 0x1ff, 0);
    a
}

#[test]
fn reset_state_is_the_virtual_wire() {
    let mut a = Lapic::new(0);
    assert!(a.lint0_ext_int() && a.lint1_nmi());
    assert_eq!(a.base(), 0xfee0_0900);
    assert_eq!(a.mmio_read(0x30, 0), 0x0005_0014);
    assert!(!a.accept(0x40, false), "disabled by software");
    a.mmio_write(0xf0, 0xff, 0);
    assert!(!a.lint0_ext_int(), "disabling masks the table");
    assert!(!Lapic::new(1).lint0_ext_int());
}

#[test]
fn priorities_follow_classes() {
    let mut a = enabled();
    assert!(a.accept(0x41, false) && a.accept(0x52, true) && a.accept(0x4f, false));
    assert_eq!(a.acknowledge(), Some(0x52));
    assert_eq!(a.pending(), None, "a lower class waits");
    assert_eq!(a.mmio_read(0xa0, 0), 0x50);
    assert_eq!(a.mmio_write(0xb0, 0, 0), Effect::Eoi(0x52), "level EOI is broadcast");
    assert_eq!(a.acknowledge(), Some(0x4f));
    assert_eq!(a.mmio_write(0xb0, 0, 0), Effect::None);
    a.mmio_write(0x80, 0x40, 0);
    assert_eq!(a.pending(), None, "TPR holds class 4");
    a.mmio_write(0x80, 0x3f, 0);
    assert_eq!(a.pending(), Some(0x41));
    assert_eq!(a.mmio_read(0x220, 0), 1 << 1, "IRR word 2 holds vector 41h");
}

#[test]
fn one_shot_and_periodic() {
    let mut a = enabled();
    a.mmio_write(0x3e0, 0xb, 0);
    a.mmio_write(0x320, 0x40, 0);
    a.mmio_write(0x380, 1000, 100);
    assert_eq!((a.deadline(), a.mmio_read(0x390, 600)), (1100, 500));
    a.advance(1099, 0);
    assert_eq!(a.pending(), None);
    a.advance(1100, 0);
    assert_eq!((a.acknowledge(), a.deadline(), a.mmio_read(0x390, 1200)), (Some(0x40), NEVER, 0));
    a.mmio_write(0xb0, 0, 0);
    a.mmio_write(0x320, 0x2_0040, 0);
    a.mmio_write(0x380, 1_000_000, 0);
    a.advance(7_500_000, 0);
    assert_eq!((a.acknowledge(), a.deadline()), (Some(0x40), 8_000_000));
    a.mmio_write(0x320, 0x3_0040, 7_600_000);
    assert_eq!(a.deadline(), NEVER, "masked: nobody is woken");
    assert_eq!(a.mmio_read(0x390, 9_250_000), 750_000, "but it counts");
}

#[test]
fn divisor_change_keeps_the_count() {
    let mut a = enabled();
    a.mmio_write(0x3e0, 0xb, 0);
    a.mmio_write(0x380, 1000, 0);
    a.mmio_write(0x3e0, 0x0, 400);
    assert_eq!(a.mmio_read(0x390, 400), 600);
    assert_eq!(a.mmio_read(0x390, 600), 500);
}

#[test]
fn tsc_deadline() {
    let mut a = enabled();
    a.set_tsc_deadline(5, 5);
    assert_eq!(a.tsc_deadline(), 0, "only in its mode");
    a.mmio_write(0x320, 0x4_0040, 0);
    a.set_tsc_deadline(5000, 1000);
    assert_eq!((a.deadline(), a.tsc_deadline()), (1000, 5000));
    assert_eq!(a.advance(1000, 4999), Some(5000), "the clock ran ahead of the counter");
    assert_eq!(a.advance(1001, 5000), None);
    assert_eq!((a.acknowledge(), a.tsc_deadline(), a.deadline()), (Some(0x40), 0, NEVER));
    a.set_tsc_deadline(9, 9);
    a.mmio_write(0x320, 0x40, 0);
    assert_eq!(a.deadline(), NEVER);
}

#[test]
fn commands() {
    let mut a = enabled();
    a.mmio_write(0x310, 0x0300_0000, 0);
    let Effect::Send(Target::Destination, m) = a.mmio_write(0x300, 0x0004_4841 & !0x4_0000, 0) else { panic!() };
    assert_eq!((m.destination, m.vector, m.logical, m.delivery), (3, 0x41, true, Delivery::Fixed));
    assert!(
        matches!(a.mmio_write(0x300, 0xc_4500, 0), Effect::Send(Target::Others, m) if m.delivery == Delivery::Init)
    );
    assert_eq!(a.mmio_write(0x300, 0x8500, 0), Effect::None, "INIT de-assert");
    assert_eq!(a.mmio_write(0x300, 0x05, 0), Effect::None);
    a.mmio_write(0x280, 0, 0);
    assert_eq!(a.mmio_read(0x280, 0), ESR_SEND_ILLEGAL);
    a.mmio_read(0x40, 0);
    a.mmio_write(0x280, 0, 0);
    assert_eq!(a.mmio_read(0x280, 0), ESR_ILLEGAL_REGISTER);
}

#[test]
fn x2apic_life() {
    let mut a = enabled();
    assert_eq!(a.x2apic_read(2, 0), None);
    assert!(!a.set_base(0xfee0_0400), "EXTD without EN");
    assert!(a.set_base(0xfee0_0d00));
    assert_eq!(a.page(), None);
    assert_eq!((a.x2apic_read(2, 0), a.x2apic_read(0xd, 0)), (Some(0), Some(1)));
    assert_eq!(a.x2apic_read(0xe, 0), None, "no DFR");
    assert_eq!(a.x2apic_write(0xb, 1, 0), None, "EOI takes zero only");
    assert!(matches!(a.x2apic_write(0x3f, 0x55, 0), Some(Effect::Send(Target::Myself, m)) if m.vector == 0x55));
    let Some(Effect::Send(_, m)) = a.x2apic_write(0x30, 0x1_0000_0000_0041, 0) else { panic!() };
    assert_eq!(m.destination, 0x1_0000);
    assert!(!a.set_base(0xfee0_0900), "not straight back");
    assert!(a.set_base(0xfee0_0000) && a.lint0_ext_int());
    assert!(!a.set_base(0xfee0_0c00));
    assert!(!a.set_base(1 << 40));
}

#[test]
fn logical_destinations() {
    let mut a = enabled();
    a.mmio_write(0xd0, 0x1200_0000, 0);
    let to =
        |destination| Message { destination, logical: true, delivery: Delivery::Fixed, vector: 0x40, level: false };
    assert!(a.matches(&to(0x02)) && a.matches(&to(0xff)) && !a.matches(&to(0x04)), "flat");
    a.mmio_write(0xe0, 0, 0);
    assert!(a.matches(&to(0x12)) && !a.matches(&to(0x22)), "cluster");
}
