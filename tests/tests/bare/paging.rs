//! Paging (SDM 3A chapter 4): error codes, access rights, accessed and dirty bits, page sizes, PAE and no-execute.

use std::error::Error;

use iced_x86::code_asm::*;
use tests::bare::harness::{bulkhead, check, check_on};
use tests::bare::runtime::SAVED;
use tests::bare::tables::{pae_pte, pte};
use tests::bare::{Bare, Emit, at};

type Outcome = Result<(), Box<dyn Error>>;

const PAGE: u32 = at::FREE;
const NEXT: u32 = at::FREE + 0x1000;

fn none(_: &mut Bare) -> Emit {
    Ok(())
}

/// Sets the page-table entry of PAGE, and forgets the old one.
fn entry(b: &mut Bare, value: u32) -> Emit {
    b.poke(pte(PAGE), value)?;
    b.asm.invlpg(byte_ptr(PAGE))
}

fn read(b: &mut Bare) -> Emit {
    b.asm.mov(eax, dword_ptr(PAGE))
}

fn write(b: &mut Bare) -> Emit {
    b.asm.mov(dword_ptr(PAGE), eax)
}

/// The error code's P, W and U bits for every right and ring, with CR0.WP clear and set.
#[test]
fn access_rights() -> Outcome {
    check(
        |b| {
            b.page_4k()?;
            for (name, flags) in [("absent", 0), ("supervisor", 3), ("supervisor read-only", 1), ("user read-only", 5)]
            {
                entry(b, PAGE | flags)?;
                b.print(&format!("{name}\n"))?;
                b.fault("read", none, read)?;
                b.fault("write", none, write)?;
                b.fault_in_ring3("read 3", read)?;
                b.fault_in_ring3("write 3", write)?;
            }
            b.cr0_set(0x1_0000)?;
            b.print("wp\n")?;
            b.fault("write user read-only", none, write)?;
            entry(b, PAGE | 1)?;
            b.fault("write supervisor read-only", none, write)?;
            entry(b, PAGE | 7)?;
            // The directory's rights count as well.
            b.poke(at::PD + 8, (at::PD + 0x3000) | 5)?;
            b.flush()?;
            b.fault("write, directory read-only", none, write)?;
            b.poke(at::PD + 8, (at::PD + 0x3000) | 3)?;
            b.flush()?;
            b.fault_in_ring3("read 3, directory supervisor", read)
        },
        "absent
         read: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00800000
         write: #14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00800000
         read 3: #14 err 00000004 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         write 3: #14 err 00000006 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         supervisor
         read: none
         write: none
         read 3: #14 err 00000005 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         write 3: #14 err 00000007 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         supervisor read-only
         read: none
         write: none
         read 3: #14 err 00000005 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         write 3: #14 err 00000007 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         user read-only
         read: none
         write: none
         read 3: #31 at +00000007 cs 001b fl 00000002 sp 0023:001c0000
         write 3: #14 err 00000007 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         wp
         write user read-only: #14 err 00000003 at +00000000 cs 0008 fl 00010002 cr2 00800000
         write supervisor read-only: #14 err 00000003 at +00000000 cs 0008 fl 00010002 cr2 00800000
         write, directory read-only: #14 err 00000003 at +00000000 cs 0008 fl 00010002 cr2 00800000
         read 3, directory supervisor: #14 err 00000005 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000",
        &[],
    )
}

/// Accessed and dirty bits appear exactly when they must.
#[test]
fn accessed_and_dirty() -> Outcome {
    check(
        |b| {
            b.page_4k()?;
            b.poke(at::PD + 8, (at::PD + 0x3000) | 7)?;
            entry(b, PAGE | 7)?;
            b.flush()?;
            b.show_memory("untouched", pte(PAGE))?;
            read(b)?;
            b.show_memory("read", pte(PAGE))?;
            b.show_memory("directory", at::PD + 8)?;
            write(b)?;
            b.show_memory("written", pte(PAGE))?;
            // A write that faults sets no dirty bit.
            entry(b, PAGE | 5)?;
            b.cr0_set(0x1_0000)?;
            b.fault("write", none, write)?;
            b.asm.mov(eax, dword_ptr(pte(PAGE)))?;
            b.asm.and(eax, 0x40)?;
            b.show("dirty")?;
            // A compare-and-exchange that fails still writes.
            entry(b, PAGE | 7)?;
            b.asm.mov(eax, 1)?;
            b.asm.lock().cmpxchg(dword_ptr(PAGE), ecx)?;
            b.show_memory("cmpxchg", pte(PAGE))?;
            // Cleared by software, then set again after invlpg.
            entry(b, PAGE | 7)?;
            write(b)?;
            b.show_memory("again", pte(PAGE))
        },
        "untouched 00800007
         read 00800027
         directory 00203027
         written 00800067
         write: #14 err 00000003 at +00000000 cs 0008 fl 00010002 cr2 00800000
         dirty 00000000
         cmpxchg 00800067
         again 00800067",
        &[],
    )
}

/// Accesses across a page border: nothing is written if the second page faults, CR2 is the second page's start.
#[test]
fn page_crossings() -> Outcome {
    check(
        |b| {
            b.page_4k()?;
            b.poke(PAGE + 0xffc, 0x1122_3344)?;
            b.poke(NEXT, 0x5566_7788)?;
            b.poke(pte(NEXT), 0)?;
            b.asm.invlpg(byte_ptr(NEXT))?;
            b.fault("write", |b| b.asm.mov(eax, -1), |b| b.asm.mov(dword_ptr(NEXT - 2), eax))?;
            b.show_memory("kept", PAGE + 0xffc)?;
            b.fault("read", none, |b| b.asm.mov(ax, word_ptr(NEXT - 1)))?;
            b.fault("add", none, |b| b.asm.add(dword_ptr(NEXT - 3), 5))?;
            b.show_memory("kept", PAGE + 0xffc)?;
            // Two linear neighbours that are not physical ones.
            b.poke(pte(NEXT), (NEXT + 0x5000) | 7)?;
            b.asm.mov(dword_ptr(NEXT - 2), 0x1234_5678)?;
            b.show_memory("first", PAGE + 0xffc)?;
            b.show_memory("second", NEXT + 0x5000)?;
            // An instruction whose second half is not there: the fault is at its start.
            b.asm.mov(dword_ptr(NEXT - 2), 0x0000_00b8)?;
            b.poke(pte(NEXT), 0)?;
            b.asm.invlpg(byte_ptr(NEXT))?;
            b.fault(
                "fetch",
                |b| b.poke(tests::bare::runtime::EXPECTED, NEXT - 2),
                |b| {
                    b.asm.mov(eax, NEXT - 2)?;
                    b.asm.jmp(eax)
                },
            )
        },
        "write: #14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00801000
         kept 11223344
         read: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00801000
         add: #14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00801000
         kept 11223344
         first 56783344
         second 00001234
         fetch: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00801000",
        // A read-modify-write asks for write permission at once; QEMU reads first.
        &["add"],
    )
}

/// State after a fault in the middle of an instruction: string counters exact, stack pointers untouched.
#[test]
fn state_after_faults() -> Outcome {
    check(
        |b| {
            b.page_4k()?;
            b.poke(pte(NEXT), 0)?;
            b.asm.invlpg(byte_ptr(NEXT))?;
            b.fault(
                "rep movsd",
                |b| {
                    b.asm.mov(esi, at::SCRATCH)?;
                    b.asm.mov(edi, NEXT - 20)?;
                    b.asm.mov(ecx, 9)
                },
                |b| b.asm.rep().movsd(),
            )?;
            registers(b)?;
            b.fault(
                "rep stosb down",
                |b| {
                    b.asm.mov(esi, 0x1111)?;
                    b.asm.mov(edi, NEXT + 0x1003)?;
                    b.asm.mov(ecx, 100)?;
                    b.asm.std()
                },
                |b| b.asm.rep().stosb(),
            )?;
            registers(b)?;
            b.fault(
                "repe cmpsb",
                |b| {
                    b.asm.mov(esi, NEXT - 3)?;
                    b.asm.mov(edi, NEXT - 3)?;
                    b.asm.mov(ecx, 8)
                },
                |b| b.asm.repe().cmpsb(),
            )?;
            registers(b)?;
            for (name, op) in [("push", 0x50u8), ("pusha", 0x60), ("call", 0xe8), ("enter", 0xc8)] {
                b.fault_in_ring(name, 0x1b, 0x23, NEXT + 0x1004, |b| match op {
                    0xe8 => b.asm.db(&[0x83, 0xec, 4, 0xe8, 0, 0, 0, 0]),
                    0xc8 => b.asm.db(&[0x83, 0xec, 4, 0xc8, 8, 0, 0]),
                    _ => b.asm.db(&[0x83, 0xec, 4, op]),
                })?;
            }
            b.fault_in_ring("pop", 0x1b, 0x23, NEXT, |b| b.asm.pop(eax))?;
            b.fault_in_ring("leave", 0x1b, 0x23, at::STACK3, |b| {
                b.asm.mov(ebp, NEXT + 8)?;
                b.asm.leave()
            })?;
            b.fault("xchg", |b| b.asm.mov(eax, 7), |b| b.asm.xchg(dword_ptr(NEXT), eax))?;
            b.show_memory("eax", SAVED + 28)
        },
        "rep movsd: #14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00801000
         edi 00801000
         esi 00187014
         ecx 00000004
         rep stosb down: #14 err 00000002 at +00000000 cs 0008 fl 00010402 cr2 00801fff
         edi 00801fff
         esi 00001111
         ecx 00000060
         repe cmpsb: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00801000
         edi 00801000
         esi 00801000
         ecx 00000005
         push: #14 err 00000006 at +00000003 cs 001b fl 00010002 sp 0023:00802000 cr2 00801ffc
         pusha: #14 err 00000006 at +00000003 cs 001b fl 00010002 sp 0023:00802000 cr2 00801ffc
         call: #14 err 00000006 at +00000003 cs 001b fl 00010002 sp 0023:00802000 cr2 00801ffc
         enter: #14 err 00000006 at +00000003 cs 001b fl 00010002 sp 0023:00802000 cr2 00801ffc
         pop: #14 err 00000004 at +00000000 cs 001b fl 00010002 sp 0023:00801000 cr2 00801000
         leave: #14 err 00000004 at +00000005 cs 001b fl 00010002 sp 0023:001c0000 cr2 00801008
         xchg: #14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00801000
         eax 00000007",
        // PUSHA starts at the top; XCHG asks for write permission at once. QEMU does neither.
        &["pusha", "xchg"],
    )
}

fn registers(b: &mut Bare) -> Emit {
    b.show_memory("edi", SAVED)?;
    b.show_memory("esi", SAVED + 4)?;
    b.show_memory("ecx", SAVED + 24)
}

/// Translations are dropped by invlpg, by loading CR3 (but global ones may stay), and by changing CR4.PGE.
#[test]
fn invalidation() -> Outcome {
    let remap = |b: &mut Bare, to: u32, flags: u32| b.poke(pte(PAGE), to | flags | 7);
    check(
        |b| {
            for (index, value) in [0x1111_1111, 0x2222_2222, 0x3333_3333].into_iter().enumerate() {
                b.poke(PAGE + index as u32 * 0x1000, value)?;
            }
            b.page_4k()?;
            b.show_memory("first", PAGE)?;
            remap(b, NEXT, 0)?;
            b.asm.invlpg(byte_ptr(PAGE))?;
            b.show_memory("invlpg", PAGE)?;
            remap(b, NEXT + 0x1000, 0)?;
            b.flush()?;
            b.show_memory("cr3", PAGE)?;
            b.cr4_set(0x80)?;
            remap(b, PAGE, 0x100)?;
            b.asm.invlpg(byte_ptr(PAGE))?;
            b.show_memory("global", PAGE)?;
            remap(b, NEXT, 0x100)?;
            b.asm.invlpg(byte_ptr(PAGE))?;
            b.show_memory("global invlpg", PAGE)?;
            remap(b, NEXT + 0x1000, 0x100)?;
            b.asm.mov(eax, cr4)?;
            b.asm.and(eax, !0x80)?;
            b.asm.mov(cr4, eax)?;
            b.show_memory("pge off", PAGE)?;
            // Any address in the page will do, and what is mapped where invlpg points need not exist.
            remap(b, PAGE, 0)?;
            b.asm.invlpg(byte_ptr(PAGE + 0xabc))?;
            b.show_memory("inside", PAGE)?;
            b.asm.invlpg(byte_ptr(0xdead_0000u32))?;
            // From not present to present needs no invalidation at all.
            b.poke(pte(PAGE), 0)?;
            b.asm.invlpg(byte_ptr(PAGE))?;
            b.fault("absent", none, read)?;
            remap(b, NEXT, 0)?;
            b.show_memory("present", PAGE)
        },
        "first 11111111
         invlpg 22222222
         cr3 33333333
         global 11111111
         global invlpg 22222222
         pge off 33333333
         inside 11111111
         absent: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00800000
         present 22222222",
        &[],
    )
}

/// 4 MiB pages: contents, dirty bit in the directory, and the reserved bit 21.
#[test]
fn large_pages() -> Outcome {
    const LARGE: u32 = 0x1000_0000;
    let directory = at::PD + (LARGE >> 22) * 4;
    check(
        |b| {
            b.poke(PAGE + 0x1234, 0xcafe_f00d)?;
            b.page_4k()?;
            b.cr4_set(0x10)?;
            b.poke(directory, PAGE | 0x87)?;
            b.show_memory("through", LARGE + 0x1234)?;
            b.show_memory("read", directory)?;
            b.poke(LARGE + 0x1238, 1)?;
            b.show_memory("written", directory)?;
            b.poke(directory, PAGE | 0x85)?;
            b.flush()?;
            b.cr0_set(0x1_0000)?;
            b.fault("read-only", none, |b| b.asm.mov(dword_ptr(LARGE + 0x10_0000), eax))?;
            b.poke(directory, PAGE | 0x20_0087)?;
            b.flush()?;
            b.fault("reserved", none, |b| b.asm.mov(eax, dword_ptr(LARGE)))?;
            // Without CR4.PSE bit 7 means nothing.
            b.poke(directory, (at::PD + 0x3000) | 0x87)?;
            b.asm.mov(eax, cr4)?;
            b.asm.and(eax, !0x10)?;
            b.asm.mov(cr4, eax)?;
            b.flush()?;
            b.show_memory("small", LARGE + 0x1234)
        },
        "through cafef00d
         read 008000a7
         written 008000e7
         read-only: #14 err 00000003 at +00000000 cs 0008 fl 00010002 cr2 10100000
         reserved: #14 err 00000009 at +00000000 cs 0008 fl 00010002 cr2 10000000
         small cafef00d",
        // QEMU leaves the P bit out of the error code for reserved bits.
        &["reserved"],
    )
}

/// PAE: rights as before, no-execute with and without EFER.NXE, reserved bits, and the pointer table's checks.
#[test]
fn pae_and_no_execute() -> Outcome {
    let set = |b: &mut Bare, low: u32, high: u32| -> Emit {
        b.poke64(pae_pte(PAGE), u64::from(high) << 32 | u64::from(PAGE | low))?;
        b.asm.invlpg(byte_ptr(PAGE))
    };
    let go = |b: &mut Bare| -> Emit {
        b.asm.mov(eax, PAGE)?;
        b.asm.jmp(eax)
    };
    check(
        |b| {
            b.poke(PAGE, 0x80cd)?; // int 80h
            b.page_pae()?;
            b.fault("execute", |b| b.poke(tests::bare::runtime::EXPECTED, PAGE), go)?;
            set(b, 7, 0x8000_0000)?;
            b.fault("nx without nxe", none, read)?;
            b.asm.mov(ecx, 0xc000_0080u32)?;
            b.asm.rdmsr()?;
            b.asm.or(eax, 0x800)?;
            b.asm.wrmsr()?;
            b.flush()?;
            b.fault("read nx", none, read)?;
            b.fault("execute nx", |b| b.poke(tests::bare::runtime::EXPECTED, PAGE), go)?;
            b.fault_in_ring3("execute nx 3", |b| b.poke(tests::bare::runtime::EXPECTED, PAGE).and_then(|()| go(b)))?;
            set(b, 0, 0)?;
            b.fault("execute absent", |b| b.poke(tests::bare::runtime::EXPECTED, PAGE), go)?;
            set(b, 5, 0)?;
            b.fault_in_ring3("write read-only 3", write)?;
            set(b, 7, 0x4000_0000)?;
            b.fault("reserved bit 62", none, read)?;
            set(b, 7, 0)?;
            read(b)?;
            write(b)?;
            b.show_memory("dirty", pae_pte(PAGE))?;
            // 2 MiB pages, always on in PAE.
            b.poke(at::PDPT + 0x1000 + 8 * 5, PAGE | 0x87)?;
            b.flush()?;
            b.show_memory("large", 0xa0_0000)?;
            b.show_memory("directory", at::PDPT + 0x1000 + 8 * 5)?;
            // The four pointers are loaded and checked when CR3 is.
            b.poke(at::PDPT + 8, 0x1e7)?;
            b.fault("bad pointer", none, |b| {
                b.asm.mov(eax, at::PDPT)?;
                b.asm.mov(cr3, eax)
            })
        },
        "execute: #31 at +00000002 cs 0008 fl 00000002
         nx without nxe: #14 err 00000009 at +00000000 cs 0008 fl 00010002 cr2 00800000
         read nx: none
         execute nx: #14 err 00000011 at +00000000 cs 0008 fl 00010002 cr2 00800000
         execute nx 3: #14 err 00000015 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         execute absent: #14 err 00000010 at +00000000 cs 0008 fl 00010002 cr2 00800000
         write read-only 3: #14 err 00000007 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000
         reserved bit 62: #14 err 00000009 at +00000000 cs 0008 fl 00010002 cr2 00800000
         dirty 00800067
         large 000080cd
         directory 008000a7
         bad pointer: #13 err 00000000 at +00000005 cs 0008 fl 00010002",
        // The P bit again; and QEMU checks no pointers.
        &["nx without", "reserved", "bad pointer"],
    )
}

/// Impossible combinations in the control registers are #GP(0) and change nothing. QEMU accepts most, and derails.
#[test]
fn control_registers() -> Outcome {
    let load = |b: &mut Bare, value: u32| b.asm.mov(ebx, value);
    check_on(
        &bulkhead(),
        |b| {
            b.fault("pg without pe", |b| load(b, 0x8000_0010), |b| b.asm.mov(cr0, ebx))?;
            b.fault("nw without cd", |b| load(b, 0x2000_0011), |b| b.asm.mov(cr0, ebx))?;
            b.fault("cr4 reserved", |b| load(b, 0x8000_0000), |b| b.asm.mov(cr4, ebx))?;
            b.fault(
                "efer reserved",
                |b| {
                    b.asm.mov(ecx, 0xc000_0080u32)?;
                    b.asm.mov(eax, -1)?;
                    b.asm.mov(edx, -1)
                },
                |b| b.asm.wrmsr(),
            )?;
            b.fault("no such msr", |b| b.asm.mov(ecx, 0x1234_5678), |b| b.asm.rdmsr())?;
            b.fault("cr1", none, |b| b.asm.db(&[0x0f, 0x20, 0xc8]))?;
            b.fault("cr5", none, |b| b.asm.db(&[0x0f, 0x22, 0xe8]))?;
            b.asm.mov(eax, cr0)?;
            b.asm.and(eax, 0x6005_0001)?;
            b.show("cr0")?;
            // ET always reads as set; CLTS and LMSW change what they may.
            b.asm.mov(eax, 0x1)?;
            b.asm.mov(cr0, eax)?;
            b.asm.mov(eax, cr0)?;
            b.show("et")?;
            b.asm.mov(eax, 0xe)?;
            b.asm.lmsw(ax)?;
            b.asm.smsw(eax)?;
            b.asm.and(eax, 0xffff)?;
            b.show("lmsw keeps pe")?;
            b.asm.clts()?;
            b.asm.mov(eax, cr0)?;
            b.show("clts")
        },
        "pg without pe: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         nw without cd: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         cr4 reserved: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         efer reserved: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         no such msr: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         cr1: #06 at +00000000 cs 0008 fl 00010002
         cr5: #06 at +00000000 cs 0008 fl 00010002
         cr0 00000001
         et 00000011
         lmsw keeps pe 0000001f
         clts 00000017",
        &[],
    )
}
