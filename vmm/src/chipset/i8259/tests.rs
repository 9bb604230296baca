use super::*;

/// As Linux programs it: vectors 30h and 38h, everything unmasked.
fn pair() -> I8259Pair {
    let mut p = I8259Pair::default();
    for (slave, base, icw3) in [(false, 0x30, 4), (true, 0x38, 2)] {
        p.write(slave, false, 0x11);
        p.write(slave, true, base);
        p.write(slave, true, icw3);
        p.write(slave, true, 1);
        p.write(slave, true, 0);
    }
    p
}

#[test]
fn priorities_and_nesting() {
    let mut p = pair();
    p.set_line(4, true);
    assert_eq!(p.acknowledge(), 0x34);
    p.set_line(5, true);
    assert!(!p.int(), "a lower priority waits for EOI");
    p.set_line(1, true);
    assert!(p.int(), "a higher one nests");
    assert_eq!(p.acknowledge(), 0x31);
    p.write(false, false, 0x20);
    assert!(!p.int());
    p.write(false, false, 0x20);
    assert_eq!(p.acknowledge(), 0x35);
}

#[test]
fn masked_edges_latch() {
    let mut p = pair();
    p.write(false, true, 0xff);
    p.set_line(3, true);
    p.set_line(3, false);
    assert!(!p.int() && !p.is_open(3));
    p.write(false, true, 0xf7);
    assert!(p.int() && p.is_open(3));
    assert_eq!(p.acknowledge(), 0x33);
}

#[test]
fn slave_through_cascade_and_back_to_back() {
    let mut p = pair();
    p.set_line(8, true);
    p.set_line(14, true);
    assert_eq!(p.acknowledge(), 0x38);
    assert!(!p.int());
    p.write(true, false, 0x20);
    p.write(false, false, 0x20);
    assert_eq!(p.acknowledge(), 0x3e);
}

#[test]
fn spurious_is_line_seven_without_isr() {
    let mut p = pair();
    assert_eq!(p.acknowledge(), 0x37);
    p.write(false, false, 0x0b);
    assert_eq!(p.read(false, false), 0);
    // A level request of the slave that goes away after the master latched it.
    p.write_elcr(true, 0x04);
    p.set_line(10, true);
    p.set_line(10, false);
    assert_eq!(p.acknowledge(), 0x3f);
    p.write(true, false, 0x0b);
    assert_eq!(p.read(true, false), 0);
}

#[test]
fn level_requests_persist() {
    let mut p = pair();
    p.write_elcr(false, 0xff);
    assert_eq!(p.read_elcr(false), 0xf8);
    p.set_line(5, true);
    assert_eq!(p.acknowledge(), 0x35);
    p.write(false, false, 0x20);
    assert!(p.int(), "still high");
    p.set_line(5, false);
    assert!(!p.int());
}

#[test]
fn rotation_special_mask_and_poll() {
    let mut p = pair();
    p.set_line(3, true);
    assert_eq!(p.acknowledge(), 0x33);
    p.write(false, false, 0xa0);
    p.set_line(3, false);
    p.set_line(3, true);
    p.set_line(4, true);
    assert_eq!(p.acknowledge(), 0x34, "line 4 is now the top");
    p.write(false, true, 0x10);
    assert!(!p.int());
    p.write(false, false, 0x68);
    assert!(p.int(), "special mask mode lets line 3 through");
    p.write(false, false, 0x0c);
    assert_eq!(p.read(false, false), 0x83);
}
