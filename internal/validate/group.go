package validate

// Group answers for the apiVersion and kind of a document: what was probably meant, in a sentence, or "" when there is nothing to say
// (it is one of ours as it should be, or none of ours).
func Group(apiVersion, kind string) string {
	return ""
}
