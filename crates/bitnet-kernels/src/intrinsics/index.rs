//! Where a lane is: PTX ISA section 10, special registers.

#[cfg(target_arch = "nvptx64")]
use core::arch::nvptx;

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident, $register:ident, $field:ident[$axis:literal];)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name() -> u32 {
            #[cfg(target_arch = "nvptx64")]
            // SAFETY: reading a special register has no precondition.
            return unsafe { nvptx::$register() as u32 };
            #[cfg(not(target_arch = "nvptx64"))]
            return crate::emulator::lane::place().$field[$axis];
        }
    )*};
}

index! {
    /// `%tid.x`: the lane's x in its block.
    thread_idx_x, _thread_idx_x, thread[0];
    /// `%tid.y`.
    thread_idx_y, _thread_idx_y, thread[1];
    /// `%tid.z`.
    thread_idx_z, _thread_idx_z, thread[2];
    /// `%ntid.x`: lanes of a block along x.
    block_dim_x, _block_dim_x, block_dim[0];
    /// `%ntid.y`.
    block_dim_y, _block_dim_y, block_dim[1];
    /// `%ntid.z`.
    block_dim_z, _block_dim_z, block_dim[2];
    /// `%ctaid.x`: the block's x in the grid.
    block_idx_x, _block_idx_x, block[0];
    /// `%ctaid.y`.
    block_idx_y, _block_idx_y, block[1];
    /// `%ctaid.z`.
    block_idx_z, _block_idx_z, block[2];
    /// `%nctaid.x`: blocks of the grid along x.
    grid_dim_x, _grid_dim_x, grid[0];
    /// `%nctaid.y`.
    grid_dim_y, _grid_dim_y, grid[1];
    /// `%nctaid.z`.
    grid_dim_z, _grid_dim_z, grid[2];
}

/// [`thread_idx_x`], read from its register once more: for code behind a stretch that is short of registers, through which
/// the compiler would otherwise carry it.
#[inline(always)]
#[must_use]
pub fn thread_idx_x_again() -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let x: u32;
        // SAFETY: reading a special register has no precondition. Not `pure`, so that it is not merged with other reads.
        unsafe {
            core::arch::asm!("mov.u32 {}, %tid.x;", out(reg32) x, options(nomem, nostack, preserves_flags));
        }
        x
    }
    #[cfg(not(target_arch = "nvptx64"))]
    thread_idx_x()
}

/// Lanes of a warp.
pub const WARP_SIZE: u32 = 32;

/// The lane's place in its warp, 0 to 31, in a block whose lanes lie along x.
#[inline(always)]
#[must_use]
pub fn lane_id() -> u32 {
    thread_idx_x() % WARP_SIZE
}

/// The warp's place in its block, in a block whose lanes lie along x.
#[inline(always)]
#[must_use]
pub fn warp_id() -> u32 {
    thread_idx_x() / WARP_SIZE
}
