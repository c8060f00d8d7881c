/* Stands in for Windows' bcryptprimitives.dll in wine 8, which lacks it. Rust's standard library takes one function from it:
   random bytes, to seed hash tables. */

#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *out, SIZE_T len);

BOOL WINAPI ProcessPrng(BYTE *out, SIZE_T len)
{
    while (len > 0) {
        ULONG part = len < 0x10000 ? (ULONG)len : 0x10000;
        /* SystemFunction036 under its documented name. Callers of ProcessPrng do not look for failure: it has none. */
        if (!RtlGenRandom(out, part)) {
            TerminateProcess(GetCurrentProcess(), 1);
        }
        out += part;
        len -= part;
    }
    return TRUE;
}
