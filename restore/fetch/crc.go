package fetch

import (
	"encoding/binary"
	"hash/crc64"
)

// The checksum of an LTX file is CRC-64/ISO, whose polynomial is as sparse as one
// can be: g = x⁶⁴ + x⁴ + x³ + x + 1. Three things follow that hash/crc64 does not
// offer.
//
// Squaring a polynomial over two elements doubles its exponents, so that g⁶⁴ is
// x⁴⁰⁹⁶ + x²⁵⁶ + x¹⁹² + x⁶⁴ + 1, with exponents that are all multiples of 64: modulo
// g, a word of the data has the same effect as four copies of it, 60, 61, 63 and 64
// words further on. All but the last 64 words of a page fold into those by
// exclusive or alone, without a table, a multiplication or a shift.
//
// Eight bytes can then be taken in with a dozen shifts and no table, and the
// checksums of the parts of a file, read at the same time, can be joined.
//
// As everywhere with reflected CRCs, bit 63 is the coefficient of x⁰ and bit 0
// that of x⁶³, so that multiplying by x is a shift to the right.

var isoTable = crc64.MakeTable(crc64.ISO)

const (
	// folded is how many words are left of a block that was folded.
	folded = 64

	// block is how many words are folded at once: a usual page.
	block = 512

	// lanes is how many words are taken in side by side, so that the processor need
	// not wait for one before it begins the next.
	lanes = 4
)

// updateCRC is crc64.Update(crc, isoTable, p), some times faster for pages.
func updateCRC(crc uint64, p []byte) uint64 {
	for len(p) >= 8*block {
		var rest [8 * folded]byte
		fold(^crc, (*[8 * block]byte)(p), &rest)
		crc = ^takeIn(0, rest[:])
		p = p[8*block:]
	}
	if n := len(p) &^ (8*lanes - 1); n > 0 {
		crc = ^takeIn(^crc, p[:n])
		p = p[n:]
	}
	return crc64.Update(crc, isoTable, p)
}

// fold writes to rest what has the same checksum, begun with 0, as the block has
// when it is begun with state.
func fold(state uint64, p *[8 * block]byte, rest *[8 * folded]byte) {
	var w [block]uint64 // as folded so far
	for i := range folded {
		w[i] = binary.LittleEndian.Uint64(p[8*i:])
	}
	w[0] ^= state
	w[60] ^= w[0]
	w[61] ^= w[0] ^ w[1]
	w[62] ^= w[1] ^ w[2]
	w[63] ^= w[0] ^ w[2] ^ w[3]
	// To word i come w[i-60] + w[i-61] + w[i-63] + w[i-64]: the sum of two pairs, the
	// second of which was the first pair of three words ago.
	before, t1, t2, t3 := w[3], w[3]^w[2], w[2]^w[1], w[1]^w[0]
	for i := folded; i < block-4; i += 3 {
		a, b, c := w[i-60], w[i-59], w[i-58]
		x, y, z := a^before, b^a, c^b
		w[i] = binary.LittleEndian.Uint64(p[8*i:]) ^ x ^ t3
		w[i+1] = binary.LittleEndian.Uint64(p[8*i+8:]) ^ y ^ t2
		w[i+2] = binary.LittleEndian.Uint64(p[8*i+16:]) ^ z ^ t1
		before, t3, t2, t1 = c, x, y, z
	}
	// Folding ends with the last 64 words: they fold into no others.
	for i := block - 4; i < block; i++ {
		w[i] = binary.LittleEndian.Uint64(p[8*i:]) ^ w[i-64]
	}
	w[block-4] ^= w[block-65] ^ w[block-67]
	w[block-3] ^= w[block-66]
	w[block-2] ^= w[block-65]
	for i := range folded {
		binary.LittleEndian.PutUint64(rest[8*i:], w[block-folded+i])
	}
}

// takeIn returns the state, which is the complement of a checksum, after some rounds
// of lanes words each.
func takeIn(state uint64, p []byte) uint64 {
	// Lane i holds the sum over the words i, i+4, i+8 and so on, each times
	// x²⁵⁶ for every step that came after it.
	a, b, c, d := state, uint64(0), uint64(0), uint64(0)
	for ; len(p) >= 16*lanes; p = p[8*lanes:] {
		w := p[:8*lanes]
		a = times256(a ^ binary.LittleEndian.Uint64(w))
		b = times256(b ^ binary.LittleEndian.Uint64(w[8:]))
		c = times256(c ^ binary.LittleEndian.Uint64(w[16:]))
		d = times256(d ^ binary.LittleEndian.Uint64(w[24:]))
	}
	// The last round is taken word by word, which joins the lanes.
	w := p[:8*lanes]
	state = times64(a ^ binary.LittleEndian.Uint64(w))
	state = times64(state ^ b ^ binary.LittleEndian.Uint64(w[8:]))
	state = times64(state ^ c ^ binary.LittleEndian.Uint64(w[16:]))
	return times64(state ^ d ^ binary.LittleEndian.Uint64(w[24:]))
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
