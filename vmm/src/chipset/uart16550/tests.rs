use super::*;

/// As Linux runs it: FIFO on, trigger 8, all interrupts, OUT2.
fn running() -> Uart16550 {
    let mut u = Uart16550::default();
    for (register, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (2, 0x81), (4, 0x0b), (1, 5)] {
        u.write(register, value, 0);
    }
    u
}

#[test]
fn fifo_trigger_and_timeout() {
    let mut u = running();
    u.receive(b"1234567", 0);
    assert!(!u.irq());
    let due = u.deadline();
    assert_eq!(due, 4 * 10 * 1_000_000_000 / 115_200);
    u.advance(due);
    assert!(u.irq());
    assert_eq!(u.read(2, due), 0xcc);
    assert_eq!(u.read(0, due), b'1');
    assert!(!u.irq(), "reading restarts the time-out");
    u.receive(b"89", due);
    assert_eq!(u.read(2, due), 0xc4);
}

#[test]
fn input_is_bounded_and_refills() {
    let mut u = running();
    assert_eq!(u.receive(&[7; 10_000], 0), INPUT_LIMIT + FIFO);
    assert_eq!(u.input_space(), 0);
    let mut n = 0;
    while u.read(5, 0) & 1 != 0 {
        u.read(0, 0);
        n += 1;
    }
    assert_eq!(n, INPUT_LIMIT + FIFO);
    assert_eq!(u.read(0, 0), 0);
}

#[test]
fn transmitter_interrupts_and_holds_back() {
    let mut u = running();
    u.write(1, 7, 0);
    assert!(u.irq());
    assert_eq!(u.read(2, 0), 0xc2);
    assert!(!u.irq(), "reading IIR clears it");
    while u.read(5, 0) & 0x20 != 0 {
        u.write(0, b'x', 0);
    }
    assert_eq!(u.read(5, 0) & 0x60, 0, "busy: the guest waits");
    assert!(!u.irq());
    let mut out = Vec::new();
    assert_eq!(u.drain(&mut out), 0);
    assert!(out.len() > OUTPUT_LIMIT - FIFO && out.len() <= OUTPUT_LIMIT);
    assert!(u.irq() && u.read(5, 0) & 0x60 == 0x60);
}

#[test]
fn a_guest_that_fills_the_fifo_at_each_interrupt_loses_nothing() {
    let mut u = running();
    u.write(1, 7, 0);
    let mut sent = 0;
    while u.irq() {
        assert_eq!(u.read(2, 0), 0xc2);
        (0..FIFO).for_each(|_| u.write(0, b'x', 0));
        sent += FIFO;
    }
    let mut out = Vec::new();
    assert_eq!((u.drain(&mut out), out.len()), (0, sent));
    assert!(u.irq(), "room again");
}

#[test]
fn a_guest_that_does_not_wait_overruns_and_is_told_on() {
    let mut u = running();
    (0..OUTPUT_LIMIT + 5).for_each(|i| u.write(0, i as u8, 0));
    u.reset();
    let mut out = Vec::new();
    assert_eq!((u.drain(&mut out), out.len()), (5, OUTPUT_LIMIT), "memory is bounded");
    assert_eq!(u.drain(&mut out), 0, "told once");
}

#[test]
fn loopback() {
    let mut u = running();
    u.write(4, 0x1a, 0);
    assert_eq!(u.read(6, 0) & 0xf0, 0x90, "the probe of every driver");
    u.write(0, 0x5a, 0);
    assert_eq!((u.read(5, 0) & 1, u.read(0, 0)), (1, 0x5a));
    for i in 0..17 {
        u.write(0, i, 0);
    }
    assert_eq!(u.read(5, 0) & 2, 2, "overrun");
    assert_eq!(u.read(5, 0) & 2, 0);
    assert!(!u.has_output());
}

#[test]
fn identification_of_a_16550a() {
    let mut u = Uart16550::default();
    u.write(2, 1, 0);
    assert_eq!(u.read(2, 0), 0xc1);
    u.write(2, 0, 0);
    assert_eq!(u.read(2, 0), 0x01);
    u.write(1, 0xff, 0);
    assert_eq!(u.read(1, 0), 15);
    u.write(7, 0xa5, 0);
    assert_eq!(u.read(7, 0), 0xa5);
}
