"""The stages in order, written once: from a source to repos that are verified.

    options, release.toml -> file     -> what is published, and as what
    all of it             -> publish  -> converted, validated, checked, uploaded, verified, tagged
    the same, streamed    -> stream   -> each shard sent while it is made
    card here and there   -> prose    -> the publisher's text of both, merged
    folder or repo        -> card     -> its card regenerated, compared, pushed; preview shows it
    repo                  -> withdraw -> card and record that say it should no longer be used
    release               -> status   -> what is done and what is left; collection shows the repos together

`privacy` looks through what would be published, `signing` signs it.
"""
