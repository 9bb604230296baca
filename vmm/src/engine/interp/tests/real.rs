//! Real mode: 16-bit operands and addresses, segment limits, ports.

use super::*;
use crate::cpu::{Exception, Stop, reg, vector};

#[test]
fn sixteen_bit_addressing_and_far_jump() {
    let mut m = Machine::real();
    m.poke(DATA + 0x34, &[0x78, 0x56]);
    m.set(reg::EBX, 0x30);
    m.set(reg::ESI, 0xdead_0004);
    // mov ax, [bx+si]
    m.bytes(&[0x8b, 0x00]).unwrap();
    assert_eq!(m.r(reg::EAX), 0x5678);
    // mov ax, [0xffff]: beyond the limit
    assert_eq!(m.bytes(&[0xa1, 0xff, 0xff]), Err(Stop::gp(0)));
    // jmp 0x1234:0x5678
    m.bytes(&[0xea, 0x78, 0x56, 0x34, 0x12]).unwrap();
    assert_eq!((m.v.state.eip, m.v.state.seg[crate::cpu::seg::CS].base), (0x5678, 0x12340));
}

#[test]
fn ports_are_read_and_written() {
    let mut m = Machine::real();
    m.bus.input.store(0x55, std::sync::atomic::Ordering::Relaxed);
    m.bytes(&[0xe4, 0x60]).unwrap();
    assert_eq!(m.r(reg::EAX), 0x55);
    m.set(reg::EDX, 0x3f8);
    m.bytes(&[0xef]).unwrap();
    assert_eq!(*m.bus.output.lock().unwrap(), [(0x3f8, 2, 0x55)]);
}

#[test]
fn code_beyond_the_segment_limit_faults() {
    let mut m = Machine::real();
    m.v.state.eip = 0xffff;
    assert_eq!(m.bytes(&[0xb8, 0, 0]), Err(Stop::gp(0)));
    m.v.state.eip = 0xffff;
    m.bytes(&[0x40]).unwrap();
    assert_eq!(m.v.state.eip, 0x10000);
    assert_eq!(m.engine.attempt(&mut m.v), Err(Stop::gp(0)));
}

#[test]
fn undefined_and_overlong_instructions() {
    let mut m = Machine::real();
    assert_eq!(m.bytes(&[0x0f, 0x0b]), Err(Exception::plain(vector::UD).into()));
    // LOCK before an instruction that cannot have it.
    assert_eq!(m.bytes(&[0xf0, 0x90]), Err(Stop::ud()));
    assert_eq!(m.bytes(&[0x66; 15]), Err(Stop::gp(0)));
}
