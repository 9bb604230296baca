//! Where everything lies: in the file that the two processes share, and in the child's address space.
//!
//! The program under test sees one code page with nothing around it, two writable data pages, a read-only data page
//! right after them, and nothing else. The child's own pages are far away; cases that would reach them are not run.

/// Bytes of a page.
pub const PAGE: u32 = 0x1000;

/// Linear address of the one code page: readable and executable. Filled with INT3 around the code.
pub const CODE: u32 = 0x4000_0000;
/// Linear address of the data pages: [`DATA_PAGES`] writable ones, then a read-only one, then nothing.
pub const DATA: u32 = 0x5000_0000;
/// Writable data pages.
pub const DATA_PAGES: u32 = 2;
/// Bytes of writable data.
pub const DATA_BYTES: usize = (DATA_PAGES * PAGE) as usize;
/// Linear address of the read-only page.
pub const READ_ONLY: u32 = DATA + DATA_PAGES * PAGE;
/// First linear address after all data.
pub const DATA_END: u32 = READ_ONLY + PAGE;

/// Linear addresses that belong to the child itself.
pub const RESERVED: std::ops::Range<u32> = 0x0800_0000..0x4000_0000 - PAGE;
/// The child's text.
pub const TEXT: u32 = 0x0804_8000;
/// The child's variables and stacks, zero at the start.
pub const BSS: u32 = 0x0806_0000;
/// Bytes of them.
pub const BSS_BYTES: u32 = 0x3_0000;
/// Where the child maps the shared file.
pub const SHARED: u32 = 0x2000_0000;

/// Offset in the file: number of cases in the batch.
pub const COUNT: u32 = 0;
/// Offset: index of the case that is running.
pub const INDEX: u32 = 4;
/// Offset of the code page.
pub const CODE_AT: u32 = PAGE;
/// Offset of the data pages, the read-only one last.
pub const DATA_AT: u32 = 2 * PAGE;
/// Offset of what the writable pages hold when a case starts.
pub const IMAGE_AT: u32 = 5 * PAGE;
/// Offset of the cases.
pub const CASES_AT: u32 = 8 * PAGE;
/// Cases in a batch, at most.
pub const BATCH: usize = 256;
/// Bytes of a case.
pub const CASE_BYTES: u32 = 1024;
/// Offset of the results.
pub const RESULTS_AT: u32 = CASES_AT + BATCH as u32 * CASE_BYTES;
/// Bytes of a result.
pub const RESULT_BYTES: u32 = RESULT_MEMORY + DATA_PAGES * PAGE;
/// Bytes of the file.
pub const FILE_BYTES: u32 = RESULTS_AT + BATCH as u32 * RESULT_BYTES;

/// In a case: general registers in encoding order.
pub const CASE_GPR: u32 = 0;
/// In a case: EFLAGS.
pub const CASE_FLAGS: u32 = 32;
/// In a case: linear address of the first instruction.
pub const CASE_START: u32 = 36;
/// In a case: bytes of code.
pub const CASE_LENGTH: u32 = 40;
/// In a case: the code, at most [`CODE_BYTES`].
pub const CASE_CODE: u32 = 64;
/// Bytes of code in a case, at most.
pub const CODE_BYTES: usize = 128;
/// In a case: the XSAVE area, standard format.
pub const CASE_XSAVE: u32 = 192;

/// In a result: the kernel's `struct sigcontext` for 32-bit programs.
pub const RESULT_CONTEXT: u32 = 0;
/// Bytes of it.
pub const CONTEXT_BYTES: u32 = 88;
/// In a result: the signal's number.
pub const RESULT_SIGNAL: u32 = 88;
/// In a result: the XSAVE area.
pub const RESULT_XSAVE: u32 = 128;
/// Bytes of an XSAVE area with x87, SSE and AVX.
pub const XSAVE_BYTES: u32 = 832;
/// In a result: the writable data pages.
pub const RESULT_MEMORY: u32 = 1024;
