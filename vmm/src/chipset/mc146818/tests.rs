use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP: u64 = 1_709_251_198;

fn rtc() -> Mc146818 {
    Mc146818::new(LEAP * SECOND, 1000)
}
fn read(r: &mut Mc146818, index: u8, now: u64) -> u8 {
    r.select(index);
    r.read(now)
}
fn write(r: &mut Mc146818, index: u8, value: u8, now: u64) {
    r.select(index);
    r.write(value, now);
}
fn date(r: &mut Mc146818, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 4, 2, 0, 6].map(|i| read(r, i, now))
}

#[test]
fn time_of_day_in_bcd_and_binary() {
    let mut r = rtc();
    assert_eq!(date(&mut r, 1000), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
    assert_eq!(date(&mut r, 1000 + 2 * SECOND), [0x20, 0x24, 0x03, 0x01, 0, 0, 0, 6]);
    write(&mut r, index::B, 0x04, 1000);
    assert_eq!(date(&mut r, 1000), [0x20, 24, 2, 29, 0x80 | 11, 59, 58, 5], "binary, 12 hours");
}

#[test]
fn setting_the_time() {
    let mut r = rtc();
    write(&mut r, index::B, 0x82, 1000);
    for (i, v) in [(0, 0x30), (2, 0x15), (4, 0x08), (7, 0x17), (8, 0x05), (9, 0x99), (0x32, 0x19)] {
        write(&mut r, i, v, 1000);
    }
    assert_eq!(read(&mut r, 0, 5 * SECOND), 0x30, "frozen");
    write(&mut r, index::B, 0x02, 5 * SECOND);
    assert_eq!(date(&mut r, 6 * SECOND)[..7], [0x19, 0x99, 0x05, 0x17, 0x08, 0x15, 0x31]);
}

#[test]
fn update_and_alarm_interrupts() {
    let mut r = rtc();
    for (i, v) in [(1, 0x05), (3, 0x00), (5, 0xff)] {
        write(&mut r, i, v, 1000);
    }
    write(&mut r, index::B, 0x22, 1000);
    assert_eq!(r.deadline(), 1000 + 7 * SECOND, "00:00:05");
    r.advance(1000 + 7 * SECOND);
    assert!(r.irq());
    assert_eq!(r.deadline(), NEVER, "nothing more until C is read");
    assert_eq!(read(&mut r, index::C, 1000 + 7 * SECOND), 0xf0, "all flags, enabled or not");
    assert!(!r.irq());
    assert_eq!(r.deadline(), 1000 + (7 + 3600) * SECOND);
    write(&mut r, index::B, 0x12, 1000 + 7 * SECOND);
    assert_eq!(r.deadline(), 1000 + 8 * SECOND);
}

#[test]
fn periodic_rates() {
    let mut r = rtc();
    write(&mut r, index::B, 0x42, 1000);
    assert_eq!(r.deadline(), 1000 + 976_562 * (SECOND * LEAP / 976_562 + 1) - SECOND * LEAP);
    r.advance(SECOND);
    assert_eq!(read(&mut r, index::C, SECOND) & 0xc0, 0xc0, "however many, one");
    write(&mut r, index::A, 0x20, SECOND);
    assert_eq!(r.deadline(), NEVER);
    write(&mut r, index::A, 0x21, SECOND);
    assert!(r.deadline() <= SECOND + 3_906_250);
}

#[test]
fn nothing_enabled_needs_no_timer() {
    let mut r = rtc();
    r.advance(1000);
    assert_eq!(r.deadline(), NEVER);
    assert_eq!(read(&mut r, index::C, 1000 + SECOND), FLAG_UF | FLAG_PF, "flags without enables do not raise IRQF");
}

#[test]
fn update_in_progress_before_the_second() {
    let mut r = Mc146818::new(SECOND - 100_000, 0);
    assert_eq!(read(&mut r, index::A, 0), 0xa6);
    assert_eq!(read(&mut r, index::A, 100_000), 0x26);
}

#[test]
fn memory_sizes() {
    let mut r = rtc();
    r.set_memory(3 << 30, 1 << 30, 1);
    assert_eq!([read(&mut r, 0x34, 0), read(&mut r, 0x35, 0)], (((3u64 << 30) - (16 << 20)) >> 16).to_le_bytes()[..2]);
    assert_eq!([read(&mut r, 0x5b, 0), read(&mut r, 0x5c, 0), read(&mut r, 0x5d, 0)], [0, 0x40, 0]);
    assert_eq!([read(&mut r, 0x30, 0), read(&mut r, 0x31, 0)], [0xff, 0xff]);
}

#[test]
fn garbage_dates_do_no_harm() {
    let mut r = rtc();
    for b in [0x82, 0x86, 0x80, 0x84] {
        for v in 0..=255u8 {
            write(&mut r, index::B, b, 1000);
            for i in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x32] {
                write(&mut r, i, v.rotate_left(u32::from(i)), 1000);
            }
            write(&mut r, index::B, b & 0x7f | 0x70, 1000);
            r.advance(1000);
            date(&mut r, 1000);
        }
    }
}

#[test]
fn alarms_that_nothing_matches_are_none() {
    let t = LEAP;
    assert_eq!(calendar::next_alarm(t, [0xff, 0xff, 0x75], 2), None);
    assert_eq!(calendar::next_alarm(t, [0xff, 0x99, 0xff], 2), None);
    assert_eq!(calendar::next_alarm(t, [0x30, 0xff, 0xff], 2), None);
    assert_eq!(calendar::next_alarm(t, [0xff, 0xff, 0xff], 2), Some(t + 1));
    assert_eq!(calendar::next_alarm(t, [0x23, 0x59, 0x58], 2), Some(t + 86_400), "the same second tomorrow");
}
