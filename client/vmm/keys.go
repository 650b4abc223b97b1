package vmm

// Scan codes: what a PC keyboard sends (set 1), keys with prefix e0 with the top bit set.
const (
	scanBackspace = 0x0e
	scanQ         = 0x10
	scanLeftCtrl  = 0x1d
	scanF         = 0x21
	scanLeftAlt   = 0x38
	scanRightCtrl = 0x9d
	scanDelete    = 0xd3
)

func functionKey(code uint8) bool {
	return code >= 0x3b && code <= 0x44 || code == 0x57 || code == 0x58 // F1-F10, F11, F12
}

// Linux numbers keys as the PC keyboard did up to F12 (88), and on its own
// after that. X numbers them as Linux, plus 8.
const xOffset = 8

var extended = map[byte]uint8{
	89: 0x73, 90: 0x78, 91: 0x77, 92: 0x79, 93: 0x70, 94: 0x7b, // Japanese keys
	96: 0x9c, 97: scanRightCtrl, 98: 0xb5, 99: 0xb7, 100: 0xb8, // keypad Enter, right Ctrl, keypad /, Print, right Alt
	102: 0xc7, 103: 0xc8, 104: 0xc9, 105: 0xcb, 106: 0xcd, // Home, up, page up, left, right
	107: 0xcf, 108: 0xd0, 109: 0xd1, 110: 0xd2, 111: scanDelete, // End, down, page down, Insert, Delete
	113: 0xa0, 114: 0xae, 115: 0xb0, 116: 0xde, // mute, volume down and up, power
	117: 0x59, 119: 0xc6, 121: 0x7e, // keypad =, Pause, keypad comma
	124: 0x7d, 125: 0xdb, 126: 0xdc, 127: 0xdd, // Yen, left and right logo, menu
}

// scanCode translates an X key code; 0 for a key PCs do not have.
func scanCode(x byte) uint8 {
	if x <= xOffset {
		return 0
	}
	key := x - xOffset
	if key <= 88 {
		return key
	}
	return extended[key]
}
