// Package synclog keeps a keyed state of one process the same in another one, over a connection that may break at any moment.
//
// In: a Source is told Set, Delete, Replace; a Sink is told Apply(chunk).
// Out: a Cursor reads chunks out of a Source, each after a position; a Sink gives the state (Snapshot) and what changed (Take).
// It must not do I/O, read a clock, or grow with the slowness of the other side: a Source holds every key once, however often it
// changes, and a bounded number of deletions.
//
// # Versions
//
// Each change gives the key the log's next version and moves it to the log's end. A Cursor walks the log in version order; a chunk
// is what lies after one version and up to another (After, Through), and fits only a Sink which stands at After. So a chunk lost,
// repeated or out of order is noticed, and a new connection goes on where the Sink stands (Position). An epoch names one life of a
// Source; a Sink at another epoch, or at a version whose later deletions the Source no longer remembers, gets everything anew
// (After = 0).
//
// # Complete
//
// What a Sink holds midway is a mixture: some keys are newer than others. It is the Source's whole state only when the Sink has
// drained the log (Through = Head) and the Source knows its own whole state (SetComplete). Only such a chunk is marked Complete,
// and only at such a chunk does a Sink drop anything, be it deleted or merely not sent anew. In between, a Sink's state only
// gains and changes: nothing ever seems gone because it has not arrived yet.
package synclog

// Sizes that both directions keep to.
const (
	MaxChunkBytes = 256 << 10 // a Sink refuses a chunk with more value bytes
	ChunkBytes    = 64 << 10  // what a Cursor fills at most; small, so that a slow line still shows life
	MaxItemBytes  = 8 << 20   // a value; larger ones are refused by name
	maxTypeBytes  = 64
	maxNameBytes  = 1024
	maxEpochBytes = 64
)

// Key names an item: e.g. type "object", name "apps/v1/Deployment/default/web".
type Key struct{ Type, Name string }

// String is type/name.
func (k Key) String() string { return k.Type + "/" + k.Name }

// Position is a place in a log: all of Epoch up to Version has been received. The zero Position is "nothing".
// Deletions up to Base don't concern this receiver, since it began anew when they had already been forgotten.
type Position struct {
	Epoch   string
	Version uint64
	Base    uint64
}

// Item is one keyed value, or a part of one (Part of Parts, 0-based; Parts 0 and 1 both mean whole).
type Item struct {
	Key
	Version     uint64
	Deleted     bool
	Value       []byte
	Part, Parts uint32
}

// Chunk is a bounded piece of a log; see the package comment.
type Chunk struct {
	Epoch          string
	After, Through uint64
	Head, Base     uint64
	Complete       bool
	Items          []Item
}

// Limits bound what a Sink keeps of a foreign Source. Zero values mean the defaults.
type Limits struct {
	Items int   // default 500,000
	Bytes int64 // keys and values; default 256 MiB
}

// Snapshot is a Sink's state at one moment. The values must not be changed.
type Snapshot struct {
	Items    map[Key][]byte
	Complete bool // Items is the Source's whole state as it was at Position
	Position Position
}

// Changes is what has changed in a Sink since the last Take.
type Changes struct {
	Set      map[Key][]byte
	Deleted  []Key // sorted; only ever gone once a whole state was received
	Complete bool  // as in Snapshot, after these changes
	Position Position
}
