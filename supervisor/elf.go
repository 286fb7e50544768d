package supervisor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// elfHeader is what a message needs of an ELF header (elf(5)). The standard library's
// debug/elf also reads sections, and with what it needs for that it takes 147 kB of the
// binary.
type elfHeader struct {
	machine     string // "x86_64", "aarch64", ...
	interpreter string // of a dynamically linked program; "" if it has none
}

// machines names the values of e_machine that a container image may have, as debug/elf
// does.
var machines = map[uint16]string{
	3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm",
	62: "x86_64", 183: "aarch64", 243: "riscv", 258: "loongarch",
}

// longestInterpreter is more than any path is long, in bytes: PATH_MAX.
const longestInterpreter = 4096

// readELF reads the header of an ELF file, and reports whether it is one.
func readELF(f io.ReaderAt) (h elfHeader, ok bool) {
	head := make([]byte, 64)
	if n, _ := f.ReadAt(head, 0); n < 52 || !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return h, false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	machine := order.Uint16(head[18:])
	if h.machine, ok = machines[machine]; !ok {
		h.machine = fmt.Sprintf("machine %d", machine)
	}
	// The program headers: their place, and in each those of a segment's offset and size.
	var table int64
	var size, count, offsetAt, sizeAt int
	word := func(b []byte) int64 { return int64(order.Uint32(b)) }
	switch head[4] {
	case 1: // 32 bits
		table, size, count = word(head[28:]), int(order.Uint16(head[42:])), int(order.Uint16(head[44:]))
		offsetAt, sizeAt = 4, 16
	case 2: // 64 bits
		word = func(b []byte) int64 { return int64(order.Uint64(b)) }
		table, size, count = word(head[32:]), int(order.Uint16(head[54:])), int(order.Uint16(head[56:]))
		offsetAt, sizeAt = 8, 32
	default:
		return h, false
	}
	for i := range min(count, 100) {
		segment := make([]byte, 56)
		if n, _ := f.ReadAt(segment, table+int64(i)*int64(size)); n < 32 || order.Uint32(segment) != 3 { // PT_INTERP
			continue
		}
		if n := word(segment[sizeAt:]); n > 0 && n < longestInterpreter {
			name := make([]byte, n)
			if _, err := f.ReadAt(name, word(segment[offsetAt:])); err == nil {
				h.interpreter = string(bytes.TrimRight(name, "\x00"))
			}
		}
		break
	}
	return h, true
}
