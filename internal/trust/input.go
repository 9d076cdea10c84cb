package trust

import "time"

// Input is all that Next, Preflight and Plan are functions of, for one policy. The management server shows it (GET /trust on its snapshot port), so that `meshctl trust plan` decides
// what the server would, from the same.
type Input struct {
	Rotation Rotation  `json:"rotation"`
	Want     Want      `json:"want"`
	Fleet    []Cluster `json:"fleet"`
	At       time.Time `json:"at"`
}
