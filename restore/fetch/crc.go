package fetch

import (
	"encoding/binary"
	"hash/crc64"
)

// The checksum of an LTX file is CRC-64/ISO, whose polynomial is as sparse as one
// can be: x⁶⁴ + x⁴ + x³ + x + 1. Two things follow that hash/crc64 does not
// offer: eight bytes can be taken in with a dozen shifts and no table, and the
// checksums of the parts of a file, read at the same time, can be joined.
//
// As everywhere with reflected CRCs, bit 63 is the coefficient of x⁰ and bit 0
// that of x⁶³, so that multiplying by x is a shift to the right.

var isoTable = crc64.MakeTable(crc64.ISO)

// lanes is how many words are taken in side by side, so that the processor need
// not wait for one before it begins the next.
const lanes = 4

// updateCRC is crc64.Update(crc, isoTable, p), some times faster for pages.
func updateCRC(crc uint64, p []byte) uint64 {
	if len(p) >= 16*lanes {
		// Lane i holds the sum over the words i, i+4, i+8 and so on, each times
		// x²⁵⁶ for every step that came after it.
		a, b, c, d := ^crc, uint64(0), uint64(0), uint64(0)
		for ; len(p) >= 16*lanes; p = p[8*lanes:] {
			w := p[:8*lanes]
			a = times256(a ^ binary.LittleEndian.Uint64(w))
			b = times256(b ^ binary.LittleEndian.Uint64(w[8:]))
			c = times256(c ^ binary.LittleEndian.Uint64(w[16:]))
			d = times256(d ^ binary.LittleEndian.Uint64(w[24:]))
		}
		// The last round is taken word by word, which joins the lanes.
		w := p[:8*lanes]
		crc = times64(a ^ binary.LittleEndian.Uint64(w))
		crc = times64(crc ^ b ^ binary.LittleEndian.Uint64(w[8:]))
		crc = times64(crc ^ c ^ binary.LittleEndian.Uint64(w[16:]))
		crc = ^times64(crc ^ d ^ binary.LittleEndian.Uint64(w[24:]))
		p = p[8*lanes:]
	}
	return crc64.Update(crc, isoTable, p)
}

// times64 multiplies by x⁶⁴, which is x⁴ + x³ + x + 1 modulo the polynomial.
func times64(y uint64) uint64 {
	y ^= y<<63 ^ y<<61 ^ y<<60 // what the shifts below push out, times x⁶⁴ again
	return y ^ y>>1 ^ y>>3 ^ y>>4
}

// times256 multiplies by x²⁵⁶, which is that to the fourth: x¹⁶ + x¹² + x⁴ + 1.
func times256(y uint64) uint64 {
	over := y<<60 ^ y<<52 ^ y<<48
	return y ^ y>>4 ^ y>>12 ^ y>>16 ^ over ^ over>>1 ^ over>>3 ^ over>>4
}

// joinCRC returns the checksum of two parts that follow one another from the
// checksum of each and the length of the second in bytes, as zlib's
// crc32_combine does for its own polynomial.
func joinCRC(first, second uint64, length int64) uint64 {
	power := uint64(1) << 63 // x⁰
	square := uint64(1) << (63 - 8)
	for n := length; n > 0; n >>= 1 { // x to the 8·length
		if n&1 != 0 {
			power = multiply(power, square)
		}
		square = multiply(square, square)
	}
	return multiply(power, first) ^ second
}

// multiply multiplies two polynomials modulo CRC-64/ISO's.
func multiply(a, b uint64) (product uint64) {
	for ; a != 0; a <<= 1 {
		if a>>63 != 0 {
			product ^= b
		}
		b = b>>1 ^ -(b&1)&crc64.ISO
	}
	return product
}
