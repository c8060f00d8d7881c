//! The instructions of AMX that this crate uses, for tests on processors without them: an instruction that the processor does not know is a
//! signal, whose handler does what it would have done and goes on behind it.

use std::cell::RefCell;
use std::sync::Once;

/// A tile of 16 rows of 64 bytes.
type Tile = [[u8; 64]; 16];

thread_local! {
    static TILES: RefCell<[Tile; 8]> = const { RefCell::new([[[0; 64]; 16]; 8]) };
}

/// From here on the process has AMX, as far as [`handle`] knows it.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: of an action all bytes may be zero.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the action is a handler with three arguments, as its flag says.
        let error = unsafe { libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) };
        assert_eq!(error, 0, "a handler for instructions that are not known");
    });
}

/// General registers in the order of their numbers in instructions.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handle(_: libc::c_int, _: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the system hands over the context of the thread that it stopped, for the handler alone.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the thread was stopped at an instruction, and what follows it in this crate's functions is longer than this.
    let code: [u8; 10] = unsafe { at.cast::<[u8; 10]>().read_unaligned() };
    let value = |register: u8| registers[REGISTERS[register as usize] as usize] as usize;
    match run(code, value) {
        Some(len) => registers[libc::REG_RIP as usize] += len as i64,
        // SAFETY: the process ends, which needs nothing.
        None => unsafe { libc::abort() },
    }
}

/// Does what an instruction does, and returns its length; `None` where it is none of those that are known. See the instruction set
/// reference of Intel, volume 2, chapters 2.3 (VEX) and 3 to 5.
fn run(code: [u8; 10], value: impl Fn(u8) -> usize) -> Option<usize> {
    let [0xc4, rxb, wvlp, opcode, modrm, ..] = code else {
        return None;
    };
    let (index_high, base_high) = (8 * (!rxb >> 6 & 1), 8 * (!rxb >> 5 & 1));
    let (prefix, third) = (wvlp & 3, (!wvlp >> 3 & 15) as usize);
    let (mode, first, second) = (modrm >> 6, (modrm >> 3 & 7) as usize, (modrm & 7) as usize);
    if mode == 3 {
        TILES.with_borrow_mut(|tiles| match (opcode, prefix) {
            // tilerelease, tilezero
            (0x49, 0) => *tiles = [[[0; 64]; 16]; 8],
            (0x49, 3) => tiles[first] = [[0; 64]; 16],
            // tdpbssd
            (0x5e, 3) => {
                let (a, b) = (tiles[second], tiles[third]);
                multiply(&mut tiles[first], &a, &b);
            }
            _ => std::process::abort(),
        });
        return Some(5);
    }
    let (mut len, mut stride) = (5, 0);
    let base = if second == 4 {
        let sib = code[5];
        len += 1;
        let index = (sib >> 3 & 7) + index_high;
        if index != 4 {
            stride = value(index) << (sib >> 6);
        }
        value((sib & 7) + base_high)
    } else {
        value(second as u8 + base_high)
    };
    let offset = match mode {
        0 if second == 5 || second == 4 && code[5] & 7 == 5 => return None,
        0 => 0,
        1 => i64::from(code[len] as i8),
        _ => i64::from(i32::from_le_bytes(*code[len..].first_chunk()?)),
    };
    len += [0, 1, 4][mode as usize];
    let address = base.wrapping_add(offset as usize);
    TILES.with_borrow_mut(|tiles| {
        for (r, row) in tiles[first].iter_mut().enumerate() {
            let place = std::ptr::with_exposed_provenance_mut::<[u8; 64]>(address + r * stride);
            match (opcode, prefix) {
                // ldtilecfg: all tiles are of the same shape here.
                (0x49, 0) => {}
                // tileloadd, tilestored
                // SAFETY: the instruction would read these bytes.
                (0x4b, 3) => *row = unsafe { place.read_unaligned() },
                // SAFETY: the instruction would write these bytes.
                (0x4b, 2) => unsafe { place.write_unaligned(*row) },
                _ => std::process::abort(),
            }
        }
    });
    Some(len)
}

/// Adds products of 16 rows of `a` with 16 columns of four bytes each of `b`.
fn multiply(sums: &mut Tile, a: &Tile, b: &Tile) {
    for (sums, a) in sums.iter_mut().zip(a) {
        for (n, sum) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let products = a.iter().enumerate().map(|(k, &a)| {
                let b = b[k / 4][4 * n + k % 4];
                i32::from(a as i8) * i32::from(b as i8)
            });
            *sum = (i32::from_le_bytes(*sum) + products.sum::<i32>()).to_le_bytes();
        }
    }
}
