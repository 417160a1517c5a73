package pipeline

// SYNAnswer is what SYN-ACKs say that are sent in a stage's place.
type SYNAnswer struct {
	MSS4, MSS6 uint16 // segment sizes, IPv4 and IPv6
	Window     uint16 // bytes
	Shift      uint8  // of later windows
}

// SYNAnswerer has the SYNs of a chain's new flows answered before they come to
// user space, with SYN-ACKs whose sequence number is a SYN cookie, so that
// nothing has to be kept of clients that do not exist. The segment of a client
// that gives a good cookie back has Packet.Cookie.
type SYNAnswerer interface {
	// AnswerSYNs says what the worker wants: that SYNs are answered so, or, with
	// nil, not any more. They are as long as any worker wants it.
	AnswerSYNs(a *SYNAnswer) error
	// SYNsAnswered returns how many were, and how many cookies were given back,
	// for all workers together.
	SYNsAnswered() (sent, good uint64)
}
