//! Every bit of processor state that emitted code takes for granted: part of a translation's key.

use crate::cpu::{CpuState, Feature, Vcpu, attr, cr0, cr4, eflags, seg};
use crate::mmu::KERNEL_SPLIT;

/// Guest flags that live in host flags while emitted code runs.
pub const HOST_FLAGS: u32 = eflags::ARITH | eflags::DF;

/// How accesses through a segment register are emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentClass {
    /// Base 0 and no limit: the offset is the linear address.
    Flat = 0,
    /// Any base, no limit: the base is added from the context.
    Based = 1,
    /// Limited, null or of a type that needs checks: interpreted.
    Checked = 2,
}

/// The mode bits of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode(u32);

const USER: u32 = 1;
const PAGING: u32 = 2;
const FP: u32 = 4;
const SSE: u32 = 8;
const AVX: u32 = 16;
const LOW_KERNEL: u32 = 32;
const RING0: u32 = 64;
const TSC: u32 = 128;
const BMI: u32 = 256;
const SEGMENTS: u32 = 10;

impl Mode {
    /// The mode of `state`; None if code in it is interpreted: real and virtual-8086 mode, 16-bit or limited code and
    /// stack segments, single step, debug breakpoints, alignment checks, an active interrupt shadow.
    pub fn of(vcpu: &Vcpu) -> Option<Self> {
        let state = &vcpu.state;
        let (cs, ss) = (&state.seg[seg::CS], &state.seg[seg::SS]);
        let aligned = state.eflags & eflags::AC != 0 && state.cr0 & cr0::AM != 0 && state.cpl == 3;
        let plain = state.protected()
            && !state.v8086()
            && cs.big()
            && cs.base == 0
            && cs.limit == u32::MAX
            && ss.big()
            && state.eflags & eflags::TF == 0
            && state.dr7 & 0xff == 0
            && state.a20_mask == u32::MAX
            && !aligned;
        if !plain || class(state, seg::SS) != SegmentClass::Flat {
            return None;
        }
        let mut bits = 0;
        let mut set = |on: bool, bit: u32| bits |= if on { bit } else { 0 };
        let fp = state.cr0 & (cr0::EM | cr0::TS) == 0;
        let user = state.cpl == 3;
        set(user, USER);
        set(state.paging(), PAGING);
        set(fp, FP);
        set(fp && state.cr4 & cr4::OSFXSR != 0, SSE);
        set(fp && state.cr4 & cr4::OSXSAVE != 0 && state.xcr0 & 6 == 6, AVX);
        set(state.paging() && !user && state.eip < KERNEL_SPLIT, LOW_KERNEL);
        set(state.cpl == 0, RING0);
        set(state.cpl == 0 || state.cr4 & cr4::TSD == 0, TSC);
        set(vcpu.model.has(Feature::Bmi1) && vcpu.model.has(Feature::Bmi2), BMI);
        for which in 0..6 {
            bits |= (class(state, which) as u32) << (SEGMENTS + 2 * which as u32);
        }
        Some(Self(bits))
    }

    /// CPL is 3.
    pub fn user(self) -> bool {
        self.0 & USER != 0
    }
    /// Paging is on.
    pub fn paging(self) -> bool {
        self.0 & PAGING != 0
    }
    /// CPL is 0.
    pub fn ring0(self) -> bool {
        self.0 & RING0 != 0
    }
    /// RDTSC does not fault.
    pub fn tsc(self) -> bool {
        self.0 & TSC != 0
    }
    /// The guest's processor has BMI1 and BMI2.
    pub fn bmi(self) -> bool {
        self.0 & BMI != 0
    }
    /// x87 instructions do not fault.
    pub fn floating_point(self) -> bool {
        self.0 & FP != 0
    }
    /// SSE instructions do not fault.
    pub fn sse(self) -> bool {
        self.0 & SSE != 0
    }
    /// AVX instructions do not fault.
    pub fn avx(self) -> bool {
        self.0 & AVX != 0
    }
    /// Supervisor code below the kernel split: its data is there too, so every access picks its window at run time.
    pub fn low_kernel(self) -> bool {
        self.0 & LOW_KERNEL != 0
    }
    /// The same, but that accesses through GS are interpreted, whatever it is.
    pub fn without_gs(self) -> Self {
        let at = SEGMENTS + 2 * seg::GS as u32;
        Self(self.0 & !(3 << at) | (SegmentClass::Checked as u32) << at)
    }
    /// How accesses through segment `which` are emitted.
    pub fn segment(self, which: usize) -> SegmentClass {
        match self.0 >> (SEGMENTS + 2 * which as u32) & 3 {
            0 => SegmentClass::Flat,
            1 => SegmentClass::Based,
            _ => SegmentClass::Checked,
        }
    }
}

fn class(state: &CpuState, which: usize) -> SegmentClass {
    let s = &state.seg[which];
    let writable_data = s.attr & (attr::UNUSABLE | attr::P | attr::S | attr::CODE | attr::EC | attr::RW)
        == attr::P | attr::S | attr::RW;
    match s.limit == u32::MAX && writable_data {
        true if s.base == 0 => SegmentClass::Flat,
        true => SegmentClass::Based,
        false => SegmentClass::Checked,
    }
}
