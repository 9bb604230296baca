//! Emitted code asked by a signal for attention: it is left soon, at a boundary, and goes on as if it had not been.

use std::sync::Arc;

use iced_x86::code_asm::*;
use nix::unistd::gettid;

use super::{CODE, DATA, STACK, adding, machine};
use crate::cpu::{eflags, reg};
use crate::engine::translate::Translator;
use crate::engine::{Engine, Exit};

#[test]
fn an_endless_loop_hears_a_request() {
    for (body, name) in [(&[0xeb, 0xfe][..], "jmp $"), (&[0x40, 0x50, 0x58, 0xeb, 0xfb][..], "push/pop")] {
        let mut v = machine(body);
        let lines = v.lines.clone();
        lines.set_thread(gettid().as_raw());
        let other = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            lines.request();
        });
        let mut translator = Translator::new(&v.mmu.ram).unwrap();
        assert_eq!(translator.run(&mut v), Exit::Requested, "{name}");
        assert_eq!(v.state.gpr[reg::ESP], STACK - if v.state.eip == CODE + 2 { 4 } else { 0 }, "{name}");
        other.join().unwrap();
    }
}

/// A long repeated string instruction is left between two iterations and finishes later.
#[test]
fn a_repeated_instruction_is_interrupted_exactly() {
    // 1: mov ecx, n; mov edi, DATA; rep stosd; jmp 1
    let mut program = vec![0xb9];
    program.extend((1u32 << 20).to_le_bytes());
    program.push(0xbf);
    program.extend(DATA.to_le_bytes());
    program.extend([0xf3, 0xab, 0xeb, 0xf2]);
    let mut v = machine(&program);
    let lines = v.lines.clone();
    lines.set_thread(gettid().as_raw());
    let mut translator = Translator::new(&v.mmu.ram).unwrap();
    for _ in 0..20 {
        let lines = lines.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2));
            lines.request();
        });
        assert_eq!(translator.run(&mut v), Exit::Requested);
        other.join().unwrap();
        if v.state.eip == CODE + 10 {
            let (count, at) = (v.state.gpr[reg::ECX], v.state.gpr[reg::EDI]);
            assert_eq!(at.wrapping_sub(DATA) / 4 + count, 1 << 20, "ECX and EDI belong together");
            assert_eq!(v.state.eflags & eflags::RF != 0, count != 1 << 20, "RF says that it has begun");
        } else {
            assert_eq!(v.state.eflags & eflags::RF, 0);
        }
    }
}

/// Being left and entered again at any instruction changes nothing.
#[test]
fn kicks_change_nothing() {
    let mut a = CodeAssembler::new(32).unwrap();
    let (mut head, mut function, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 3_000_000).unwrap();
    a.xor(eax, eax).unwrap();
    a.set_label(&mut head).unwrap();
    a.push(ecx).unwrap();
    a.push(eax).unwrap();
    a.lea(edi, dword_ptr(DATA)).unwrap();
    a.lea(esi, dword_ptr(esp)).unwrap();
    a.cmpsb().unwrap();
    a.pop(eax).unwrap();
    a.call(function).unwrap();
    a.pop(edx).unwrap();
    a.dec(ecx).unwrap();
    a.jne(head).unwrap();
    a.jmp(done).unwrap();
    adding(&mut a, &mut function, |a| a.adc(eax, 1).unwrap());
    a.set_label(&mut done).unwrap();
    a.hlt().unwrap();
    let program = a.assemble(CODE as u64).unwrap();

    let (mut calm, mut kicked) = (machine(&program), machine(&program));
    assert_eq!(Translator::new(&calm.mmu.ram).unwrap().run(&mut calm), Exit::Halted);

    let lines = kicked.lines.clone();
    lines.set_thread(gettid().as_raw());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let other = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(std::time::Duration::from_micros(50));
                lines.request();
            }
        }
    });
    let mut translator = Translator::new(&kicked.mmu.ram).unwrap();
    let mut requests = 0;
    while translator.run(&mut kicked) == Exit::Requested {
        requests += 1;
        assert_eq!(kicked.state.gpr[reg::ESP] & 3, 0);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
    assert!(requests > 0);
    assert_eq!(calm.state, kicked.state, "after {requests} requests");
}
