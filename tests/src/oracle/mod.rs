//! This host's processor as an oracle: runs short pieces of 32-bit code in a child process, from any register, flag,
//! x87, SSE and AVX state, and reports how each ended.
//!
//! The child ([`program`]) is a 32-bit program that the test assembles itself. Cases go to it in batches through a
//! shared file; a case ends by a signal, at the latest at the INT3 bytes around its code. A child that hangs is killed
//! and replaced, and the case that hung it reported as such.

mod elf;
pub mod layout;
mod program;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use layout::*;

/// How long a whole batch may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A short program and the state it starts from.
#[derive(Clone, Debug)]
pub struct Case {
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub gpr: [u32; 8],
    /// EFLAGS: arithmetic flags, DF and AC.
    pub eflags: u32,
    /// Linear address of the first instruction, in the page at [`CODE`].
    pub start: u32,
    /// Machine code, at most [`CODE_BYTES`], ending before the page does.
    pub code: Vec<u8>,
    /// Standard-format XSAVE area.
    pub xsave: Vec<u8>,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// General registers, in encoding order.
    pub gpr: [u32; 8],
    /// EIP: of the faulting instruction, or after an INT3.
    pub eip: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// Vector of the exception that ended it.
    pub vector: u32,
    /// Its error code, 0 if it has none.
    pub error: u32,
    /// For page faults the linear address, else 0.
    pub cr2: u32,
    /// XSAVE area.
    pub xsave: Vec<u8>,
    /// The writable data pages.
    pub memory: Vec<u8>,
}

/// A child process that runs cases.
pub struct Native {
    program: OwnedFd,
    shared: File,
    running: Option<(Child, UnixStream)>,
}

impl Drop for Native {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Native {
    /// Assembles the program. No child runs yet.
    pub fn new() -> std::io::Result<Self> {
        let text = program::assemble().map_err(std::io::Error::other)?;
        let program = memfd_create("oracle", MFdFlags::MFD_CLOEXEC)?;
        File::from(program.try_clone()?).write_all(&elf::wrap(&text))?;
        let shared = File::from(memfd_create("oracle-cases", MFdFlags::MFD_CLOEXEC)?);
        shared.set_len(FILE_BYTES as u64)?;
        Ok(Self { program, shared, running: None })
    }

    /// Sets what the read-only page holds from now on.
    pub fn set_read_only(&mut self, page: &[u8; PAGE as usize]) -> std::io::Result<()> {
        self.shared.write_all_at(page, (DATA_AT + DATA_PAGES * PAGE) as u64)
    }

    /// Runs up to [`BATCH`] cases, each starting with `image` in the writable data pages. None for a case that hung.
    pub fn run(&mut self, image: &[u8], cases: &[Case]) -> std::io::Result<Vec<Option<Outcome>>> {
        assert!(cases.len() <= BATCH && image.len() == DATA_BYTES);
        self.shared.write_all_at(image, IMAGE_AT as u64)?;
        let mut outcomes = Vec::new();
        while outcomes.len() < cases.len() {
            let rest = &cases[outcomes.len()..];
            let done = self.batch(rest)?;
            outcomes.extend((0..done).map(|i| self.outcome(i).map(Some)).collect::<Result<Vec<_>, _>>()?);
            if done < rest.len() {
                outcomes.push(None);
            }
        }
        Ok(outcomes)
    }

    /// Runs one batch and returns how many cases ended before one hung or broke the child.
    fn batch(&mut self, cases: &[Case]) -> std::io::Result<usize> {
        let mut bytes = vec![0; cases.len() * CASE_BYTES as usize];
        for (case, to) in cases.iter().zip(bytes.chunks_mut(CASE_BYTES as usize)) {
            case.write(to);
        }
        self.shared.write_all_at(&bytes, CASES_AT as u64)?;
        self.shared.write_all_at(&(cases.len() as u32).to_le_bytes(), COUNT as u64)?;
        self.shared.write_all_at(&0u32.to_le_bytes(), INDEX as u64)?;
        let socket = self.child()?;
        let answered = socket.write_all(&[1]).and_then(|()| socket.read_exact(&mut [0]));
        if answered.is_ok() {
            return Ok(cases.len());
        }
        self.stop();
        let mut index = [0; 4];
        self.shared.read_exact_at(&mut index, INDEX as u64)?;
        Ok((u32::from_le_bytes(index) as usize).min(cases.len().saturating_sub(1)))
    }

    fn child(&mut self) -> std::io::Result<&mut UnixStream> {
        if self.running.is_none() {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_read_timeout(Some(PATIENCE))?;
            let child = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
                .stdin(Stdio::from(self.shared.try_clone()?))
                .stdout(Stdio::from(OwnedFd::from(theirs)))
                .spawn()?;
            self.running = Some((child, ours));
        }
        self.running.as_mut().map(|(_, s)| s).ok_or_else(|| std::io::Error::other("no child"))
    }

    fn stop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn outcome(&self, index: usize) -> std::io::Result<Outcome> {
        let mut bytes = vec![0; RESULT_BYTES as usize];
        self.shared.read_exact_at(&mut bytes, RESULTS_AT as u64 + index as u64 * RESULT_BYTES as u64)?;
        Ok(Outcome::read(&bytes))
    }
}

impl Case {
    fn write(&self, to: &mut [u8]) {
        let mut put = |at: u32, v: &[u8]| to[at as usize..][..v.len()].copy_from_slice(v);
        for (i, v) in self.gpr.iter().enumerate() {
            put(CASE_GPR + 4 * i as u32, &v.to_le_bytes());
        }
        put(CASE_FLAGS, &self.eflags.to_le_bytes());
        put(CASE_START, &self.start.to_le_bytes());
        put(CASE_LENGTH, &(self.code.len() as u32).to_le_bytes());
        put(CASE_CODE, &self.code);
        put(CASE_XSAVE, &self.xsave);
    }
}

impl Outcome {
    fn read(b: &[u8]) -> Self {
        let word = |at: u32| u32::from_le_bytes(std::array::from_fn(|i| b[at as usize + i]));
        // struct sigcontext: gs fs es ds edi esi ebp esp ebx edx ecx eax trapno err eip cs eflags esp ss fpu mask cr2.
        let gpr = [44, 40, 36, 32, 28, 24, 20, 16].map(word);
        let vector = word(48);
        let mut xsave = b[RESULT_XSAVE as usize..][..XSAVE_BYTES as usize].to_vec();
        // The kernel's own words in the area's unused part.
        xsave[416..512].fill(0);
        Self {
            gpr,
            eip: word(56),
            eflags: word(64),
            vector,
            error: word(52),
            cr2: if vector == 14 { word(84) } else { 0 },
            xsave,
            memory: b[RESULT_MEMORY as usize..][..DATA_BYTES].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(code: &[u8]) -> Case {
        let mut xsave = vec![0; XSAVE_BYTES as usize];
        xsave[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        xsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        xsave[512] = 7;
        Case { gpr: [0, 1, 2, 3, DATA + 64, 5, 6, 7], eflags: 0x202, start: CODE, code: code.to_vec(), xsave }
    }

    #[test]
    fn cases_end_as_the_processor_ends_them() {
        let mut native = Native::new().unwrap();
        let image = vec![0x11; DATA_BYTES];
        let cases = [
            case(&[0x01, 0xc8]),                               // add eax, ecx
            case(&[0xf7, 0xf0]),                               // div eax
            case(&[0x0f, 0x0b]),                               // ud2
            case(&[0xa1, 0, 0, 0, 0x60]),                      // mov eax, [60000000h]
            case(&[0xc7, 0x05, 0, 0x20, 0, 0x50, 1, 0, 0, 0]), // mov dword [READ_ONLY], 1
            case(&[0x50]),                                     // push eax
            case(&[0xd9, 0xe8]),                               // fld1
        ];
        let ends: Vec<Outcome> = native.run(&image, &cases).unwrap().into_iter().map(Option::unwrap).collect();
        assert_eq!((ends[0].gpr[0], ends[0].vector, ends[0].eip), (1, 3, CODE + 3));
        assert_eq!((ends[1].vector, ends[1].eip), (0, CODE));
        assert_eq!(ends[2].vector, 6);
        assert_eq!((ends[3].vector, ends[3].cr2, ends[3].error), (14, 0x6000_0000, 4));
        assert_eq!((ends[4].vector, ends[4].cr2, ends[4].error), (14, READ_ONLY, 7));
        assert_eq!((ends[5].gpr[4], &ends[5].memory[56..64]), (DATA + 60, &[0x11, 0x11, 0x11, 0x11, 0, 0, 0, 0][..]));
        assert_eq!(ends[6].xsave[32..42], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    }

    #[test]
    fn a_hanging_case_is_found_and_the_rest_runs() {
        let mut native = Native::new().unwrap();
        let cases = [case(&[0x90]), case(&[0xeb, 0xfe]), case(&[0x40])];
        let ends = native.run(&vec![0; DATA_BYTES], &cases).unwrap();
        assert!(ends[0].is_some() && ends[1].is_none());
        assert_eq!(ends[2].as_ref().map(|e| e.gpr[0]), Some(1));
    }
}
