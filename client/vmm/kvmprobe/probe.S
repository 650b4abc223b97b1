# A guest of 4 KiB that does what the kernel of an ordinary operating system
# cannot do without, and says at which stage it failed.
#
# It is the last page of a PC's ROM, entered at the reset vector, so no firmware
# runs before it. The end is a write to port 0xf4 (isa-debug-exit): 0x2a for
# success, 0x40 + stage for an exception nobody expected. A processor that cannot go on
# (triple fault) resets, and one that is emulated instruction by instruction
# does not get through stage 6 in the time it is given.
#
# Build (bytes in probe.bin):
#   as --64 -o probe.o probe.S && ld -m elf_x86_64 -Ttext=0xff000 --oformat=binary -o probe.bin probe.o

.intel_syntax noprefix

.set FAULTS,  0x2000            # counters, in low memory
.set LTICKS,  0x2008
.set PTICKS,  0x2010
.set STAGE,   0x2018
.set CALLS,   0x2020
.set KSP,     0x2028
.set IDT,     0x3000
.set TSS,     0x4000
.set GDT,     0x5000
.set KSTACK,  0x7ff0
.set USTACK,  0x8ff0
.set PML4,    0x10000
.set PDPT,    0x11000
.set PDLOW,   0x12000
.set PDHIGH,  0x13000
.set PT,      0x14000
.set REGION,  0x200000          # mapped page by page, on faults
.set FRAMES,  0x400000          # what is mapped there
.set PAGES,   256
.set ROUNDS,  4
.set NCALLS,  2000
.set LOOPS,   10000000
.set APIC,    0xfee00000
.set IOAPIC,  0xfec00000

.text
.globl _start

.code16
start16:
    cli
    cld
    .byte 0x66                  # 32-bit base
    lgdt cs:[gdtr16 - 0xf0000]
    mov eax, cr0
    or  al, 1
    mov cr0, eax
    .byte 0x66, 0xea            # far jump
    .long start32
    .word 0x08

.code32
start32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, KSTACK
    # Stage 1: page tables and long mode.
    mov edi, 0x2000
    xor eax, eax
    mov ecx, (0x9000 - 0x2000) / 4
    rep stosd
    mov edi, PML4
    mov ecx, 0x5000 / 4
    rep stosd
    mov byte ptr [STAGE], 1
    mov dword ptr [PML4], PDPT + 7
    mov dword ptr [PDPT], PDLOW + 7
    mov dword ptr [PDPT + 3*8], PDHIGH + 7
    mov edi, PDLOW              # the first GiB, in pages of 2 MiB
    mov eax, 0x87
    mov ecx, 512
1:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 1b
    mov dword ptr [PDLOW + (REGION >> 21)*8], PT + 7
    mov edi, PDHIGH             # the last of four, not cached
    mov eax, 0xc0000000 + 0x9f
    mov ecx, 512
1:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 1b
    mov eax, cr4
    or  eax, 0x6a0              # PAE, PGE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or  eax, 0x901              # SCE, LME, NXE
    wrmsr
    mov eax, cr0
    and eax, ~4                 # EM
    or  eax, 0x80010022         # PG, WP, NE, MP
    mov cr0, eax
    ljmp 0x18, offset start64

.code64
start64:
    mov ax, 0x20
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esi, offset gdt
    mov edi, GDT
    mov ecx, (gdtend - gdt) / 8
    rep movsq
    mov dword ptr [TSS + 4], KSTACK
    lgdt [gdtr64]
    mov edi, IDT
    mov ecx, 256
1:  mov eax, offset unexpected
    call gate
    loop 1b
    mov edi, IDT + 14*16
    mov eax, offset fault
    call gate
    mov edi, IDT + 0x40*16
    mov eax, offset apictick
    call gate
    mov eax, offset pittick
    call gate
    mov edi, IDT + 0x80*16
    mov eax, offset back
    call gate
    mov byte ptr [IDT + 0x80*16 + 5], 0xee  # may be called from ring 3
    lidt [idtr]
    mov ax, 0x40
    ltr ax
    movups xmm0, [gdt]
    movups [CALLS], xmm0
    mov qword ptr [CALLS], 0

    # Stage 2: page faults on missing and on read-only pages, invlpg.
    inc byte ptr [STAGE]
    mov ebx, ROUNDS
round:
    mov qword ptr [FAULTS], 0
    mov edi, REGION
    mov ecx, PAGES
1:  mov [rdi], rdi
    add rdi, 4096
    loop 1b
    cmp qword ptr [FAULTS], 2*PAGES
    jne unexpected
    mov edi, REGION
    mov esi, FRAMES
    mov ecx, PAGES
1:  cmp [rsi], rdi              # the frame has what was written to the page
    jne unexpected
    mov rax, rdi
    shr rax, 12
    and eax, 511
    mov qword ptr [PT + rax*8], 0
    invlpg [rdi]
    add rdi, 4096
    add rsi, 4096
    loop 1b
    dec ebx
    jnz round

    # Stage 3: ring 3, system calls, faults and interrupts from there.
    inc byte ptr [STAGE]
    mov ecx, 0xc0000081         # STAR
    xor eax, eax
    mov edx, 0x00280018
    wrmsr
    inc ecx                     # LSTAR
    mov eax, offset syscall_entry
    xor edx, edx
    wrmsr
    add ecx, 2                  # FMASK
    mov eax, 0x700
    wrmsr
    push 0x33
    push USTACK
    push 2
    push 0x3b
    mov eax, offset user
    push rax
    iretq

user:
    mov ebx, NCALLS
1:  syscall
    dec ebx
    jnz 1b
    mov [REGION + 0x5000], rsp
    int 0x80

syscall_entry:
    mov [KSP], rsp
    mov esp, KSTACK
    inc qword ptr [CALLS]
    mov rsp, [KSP]
    sysretq

back:                           # int 0x80
    mov rax, [rsp + 8]
    cmp eax, 0x3b
    jne unexpected
    mov esp, KSTACK
    cmp qword ptr [CALLS], NCALLS
    jne unexpected
    mov ax, 0x20
    mov ss, ax

    # Stage 4: the local APIC's timer wakes a halted processor.
    inc byte ptr [STAGE]
    mov al, 0xff                # no interrupts from the old controllers
    out 0x21, al
    out 0xa1, al
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov dword ptr [rbp + 0x3e0], 0xb
    mov dword ptr [rbp + 0x320], 0x20040
    mov dword ptr [rbp + 0x380], 1000000
    sti
1:  hlt
    cmp qword ptr [LTICKS], 5
    jb  1b
    mov dword ptr [rbp + 0x320], 0x10000

    # Stage 5: the PIT does, through the I/O APIC.
    inc byte ptr [STAGE]
    mov ebp, IOAPIC
    mov dword ptr [rbp], 0x15
    mov dword ptr [rbp + 0x10], 0
    mov dword ptr [rbp], 0x14
    mov dword ptr [rbp + 0x10], 0x41
    mov al, 0x34
    out 0x43, al
    mov eax, 11932              # 100 Hz
    out 0x40, al
    mov al, ah
    out 0x40, al
1:  hlt
    cmp qword ptr [PTICKS], 3
    jb  1b

    # Stage 6: the time stamp counter goes on, CPUID answers, and plain
    # instructions run as fast as they should: 50 million of them.
    inc byte ptr [STAGE]
    rdtsc
    shl rdx, 32
    lea r12, [rax + rdx]
    mov r13d, 100
1:  xor eax, eax
    cpuid
    dec r13d
    jnz 1b
    mov esi, FRAMES
    mov edx, 3
    mov ecx, LOOPS
1:  add rax, rdx
    mov [rsi], rax
    xor rdx, [rsi + 8]
    dec rcx
    jnz 1b
    rdtsc
    shl rdx, 32
    add rax, rdx
    cmp rax, r12
    jbe unexpected
    mov al, 0x2a
    out 0xf4, al
1:  hlt
    jmp 1b

unexpected:
    mov al, [STAGE]
    or  al, 0x40
    out 0xf4, al
1:  cli
    hlt
    jmp 1b

# gate writes an interrupt gate to rax at rdi, and moves rdi on.
gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x18
    mov word ptr [rdi + 4], 0x8e00
    mov edx, eax
    shr edx, 16
    mov [rdi + 6], edx
    mov qword ptr [rdi + 8], 0
    add rdi, 16
    ret

fault:                          # maps read-only what is missing, makes writable what is not
    push rax
    push rdx
    mov rax, cr2
    mov rdx, rax
    shr rdx, 21
    cmp rdx, REGION >> 21
    jne unexpected
    inc qword ptr [FAULTS]
    mov rdx, rax
    shr rdx, 12
    and edx, 511
    test byte ptr [PT + rdx*8], 1
    jnz 1f
    and rax, ~0xfff
    add rax, FRAMES - REGION + 5
    mov [PT + rdx*8], rax
    jmp 2f
1:  or  byte ptr [PT + rdx*8], 2
    invlpg [rax]
2:  pop rdx
    pop rax
    add rsp, 8
    iretq

apictick:
    inc qword ptr [LTICKS]
    jmp 1f
pittick:
    inc qword ptr [PTICKS]
1:  push rax
    mov eax, APIC
    mov dword ptr [rax + 0xb0], 0
    pop rax
    iretq

.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 08 code, 32 bits
    .quad 0x00cf93000000ffff    # 10 data
    .quad 0x00af9b000000ffff    # 18 code, 64 bits
    .quad 0x00cf93000000ffff    # 20 data
    .quad 0x00cffb000000ffff    # 28 user code, 32 bits
    .quad 0x00cff3000000ffff    # 30 user data
    .quad 0x00affb000000ffff    # 38 user code, 64 bits
    .quad 0x0000890040000067    # 40 TSS
    .quad 0
gdtend:
gdtr16:
    .word gdtend - gdt - 1
    .long gdt
gdtr64:
    .word gdtend - gdt - 1
    .quad GDT
idtr:
    .word 256*16 - 1
    .quad IDT

.org 0xff0
.code16
_start:
    jmp start16
.balign 16
