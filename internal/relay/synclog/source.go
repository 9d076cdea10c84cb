package synclog

// Source is the sending side's state as a log. Safe for concurrent use.
type Source struct{}

// NewSource makes an empty log that does not know its whole state yet (SetComplete). epoch must differ between two lives of the
// sender, e.g. a random string.
func NewSource(epoch string) *Source { panic("stub") }

// Set gives key a value; the same value again is no change. The Source keeps value: don't change it afterwards.
func (s *Source) Set(key Key, value []byte) error { panic("stub") }

// Delete removes key; nothing happens if it isn't there.
func (s *Source) Delete(key Key) { panic("stub") }

// SetComplete says whether what the Source holds is the whole state. While it isn't, receivers drop nothing.
func (s *Source) SetComplete(complete bool) { panic("stub") }

// Replace makes items the whole state: sets what differs and, if complete, deletes what is not among them. An item that is too
// large is named in the error, keeps its former value, and makes the state incomplete.
func (s *Source) Replace(items map[Key][]byte, complete bool) error { panic("stub") }
