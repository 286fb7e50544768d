package supervisor

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// program is an ELF file of a class and byte order, for a machine, with an interpreter.
func program(class elf.Class, order elf.Data, machine elf.Machine, interpreter string) []byte {
	var by binary.ByteOrder = binary.LittleEndian
	if order == elf.ELFDATA2MSB {
		by = binary.BigEndian
	}
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(class), byte(order), byte(elf.EV_CURRENT)}
	var b bytes.Buffer
	name := append([]byte(interpreter), 0)
	size := uint64(len(name))
	switch class {
	case elf.ELFCLASS32:
		_ = binary.Write(&b, by, elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 2, Shentsize: 40})
		_ = binary.Write(&b, by, elf.Prog32{Type: uint32(elf.PT_LOAD)})
		_ = binary.Write(&b, by, elf.Prog32{Type: uint32(elf.PT_INTERP), Off: 52 + 64, Filesz: uint32(size)})
	default:
		_ = binary.Write(&b, by, elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64})
		_ = binary.Write(&b, by, elf.Prog64{Type: uint32(elf.PT_LOAD)})
		_ = binary.Write(&b, by, elf.Prog64{Type: uint32(elf.PT_INTERP), Off: 64 + 112, Filesz: size})
	}
	return append(b.Bytes(), name...)
}

// It reads what debug/elf reads, of real programs and of those of other machines.
func TestReadELF(t *testing.T) {
	files := map[string]io.ReaderAt{}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{self, "sh", "ls"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files[name] = f
	}
	for _, m := range []elf.Machine{
		elf.EM_386, elf.EM_MIPS, elf.EM_PPC, elf.EM_PPC64, elf.EM_S390, elf.EM_ARM, elf.EM_X86_64, elf.EM_AARCH64, elf.EM_RISCV, elf.EM_LOONGARCH,
	} {
		for _, class := range []elf.Class{elf.ELFCLASS32, elf.ELFCLASS64} {
			for _, order := range []elf.Data{elf.ELFDATA2LSB, elf.ELFDATA2MSB} {
				files[m.String()+class.String()+order.String()] = bytes.NewReader(program(class, order, m, "/lib/ld-"+m.String()))
			}
		}
	}
	for name, f := range files {
		want, err := elf.NewFile(f)
		if err != nil {
			t.Fatal(name, err)
		}
		var interpreter string
		for _, p := range want.Progs {
			if p.Type == elf.PT_INTERP {
				b, err := io.ReadAll(p.Open())
				if err != nil {
					t.Fatal(name, err)
				}
				interpreter = strings.TrimRight(string(b), "\x00")
			}
		}
		machine := strings.ToLower(strings.TrimPrefix(want.Machine.String(), "EM_"))
		if got, ok := readELF(f); !ok || got.machine != machine || got.interpreter != interpreter {
			t.Errorf("%s: %+v, %v, not %s and %q", name, got, ok, machine, interpreter)
		}
	}
	for _, other := range []string{"", "\x7fELF", "#!/bin/sh\necho\n" + strings.Repeat("#", 100)} {
		if got, ok := readELF(strings.NewReader(other)); ok {
			t.Errorf("%q is %+v", other, got)
		}
	}
}

func FuzzELF(f *testing.F) {
	f.Add([]byte("#!/bin/sh\n"))
	f.Add(program(elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_X86_64, "/lib64/ld-linux-x86-64.so.2"))
	f.Add(program(elf.ELFCLASS32, elf.ELFDATA2MSB, elf.EM_MIPS, "/lib/ld.so.1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := readELF(bytes.NewReader(b)); ok && (h.machine == "" || len(h.interpreter) >= longestInterpreter) {
			t.Errorf("%+v", h)
		}
	})
}
