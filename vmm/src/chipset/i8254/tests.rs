use super::*;

/// A time at which exactly `tick` ticks have passed.
fn at(tick: u64) -> u64 {
    ns_at(tick)
}

fn program(pit: &mut I8254, control: u8, count: u16, now: u64) {
    let index = usize::from(control >> 6);
    pit.write(3, control, now);
    for b in count.to_le_bytes() {
        pit.write(index, b, now);
    }
}

#[test]
fn mode_2_ticks_keep_their_phase_and_coalesce() {
    let mut pit = I8254::default();
    program(&mut pit, 0x34, 1193, at(1000));
    pit.advance(at(1000));
    assert_eq!(pit.deadline(), at(2193));
    assert!(!pit.advance(at(2192)));
    assert!(pit.advance(at(2193)));
    assert!(!pit.advance(at(2200)));
    assert!(pit.advance(at(1000 + 1193 * 50 + 7)), "fifty periods are one interrupt");
    assert_eq!(pit.deadline(), at(1000 + 1193 * 51));
}

#[test]
fn mode_0_and_4_fire_once() {
    for (control, extra) in [(0x30, 0), (0x38, 1)] {
        let mut pit = I8254::default();
        program(&mut pit, control, 100, at(0));
        pit.advance(at(0));
        assert_eq!(pit.deadline(), at(100 + extra));
        assert!(pit.advance(at(101)));
        assert_eq!(pit.deadline(), NEVER);
        assert!(!pit.advance(at(1_000_000)));
    }
}

#[test]
fn a_new_count_waits_for_the_period_to_end() {
    let mut pit = I8254::default();
    program(&mut pit, 0x34, 1000, at(0));
    pit.write(0, 0x88, at(10));
    pit.write(0, 0x13, at(10));
    pit.write(3, 0xe2, at(10));
    assert_eq!(pit.read(0, at(10)) & 0x40, 0x40, "null count");
    assert_eq!(pit.deadline(), at(1000));
    assert!(pit.advance(at(1000)));
    assert_eq!(pit.deadline(), at(6000));
}

#[test]
fn latch_and_read_back() {
    let mut pit = I8254::default();
    program(&mut pit, 0x34, 1000, at(0));
    pit.write(3, 0x00, at(100));
    assert_eq!([pit.read(0, at(500)), pit.read(0, at(500))], 900u16.to_le_bytes());
    assert_eq!([pit.read(0, at(500)), pit.read(0, at(500))], 500u16.to_le_bytes(), "unlatched");
    pit.write(3, 0xc2, at(600));
    assert_eq!(pit.read(0, at(600)), 0xb4, "status first: OUT high, both bytes, mode 2");
    assert_eq!([pit.read(0, at(700)), pit.read(0, at(700))], 400u16.to_le_bytes());
    assert_eq!(pit.read(3, 0), 0xff);
}

#[test]
fn bcd_counts_in_tens() {
    let mut pit = I8254::default();
    program(&mut pit, 0x31, 0x1000, at(0));
    assert_eq!([pit.read(0, at(1)), pit.read(0, at(1))], 0x0999u16.to_le_bytes());
}

#[test]
fn counter_2_is_gated_and_seen_in_port_b() {
    let mut pit = I8254::default();
    program(&mut pit, 0xb0, 500, at(0));
    assert_eq!(pit.read_port_b(at(1000)) & 0x21, 0, "the gate is closed");
    pit.write_port_b(1, at(1000));
    assert_eq!(pit.read_port_b(at(1499)) & 0x20, 0);
    assert_eq!(pit.read_port_b(at(1500)) & 0x21, 0x21);
    assert_ne!(pit.read_port_b(0) & 0x10, pit.read_port_b(15_100) & 0x10, "refresh toggles");
}

#[test]
fn mode_3_is_a_square_wave_and_mode_1_waits_for_the_gate() {
    let mut pit = I8254::default();
    program(&mut pit, 0xb6, 100, at(0));
    pit.write_port_b(1, at(0));
    assert_eq!(pit.read_port_b(at(49)) & 0x20, 0x20);
    assert_eq!(pit.read_port_b(at(50)) & 0x20, 0);
    assert_eq!(pit.read_port_b(at(100)) & 0x20, 0x20);
    pit.write_port_b(0, at(100));
    program(&mut pit, 0xb2, 100, at(100));
    assert_eq!(pit.read_port_b(at(900)) & 0x20, 0x20);
    pit.write_port_b(1, at(1000));
    assert_eq!(pit.read_port_b(at(1050)) & 0x20, 0);
    assert_eq!(pit.read_port_b(at(1100)) & 0x20, 0x20);
}

#[test]
fn the_fastest_period_does_not_spin_the_host() {
    let mut pit = I8254::default();
    program(&mut pit, 0x34, 1, at(10));
    let now = at(20);
    pit.advance(now);
    assert!(pit.deadline() >= now + MIN_PERIOD_NS - 20_000);
}
