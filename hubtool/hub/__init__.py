"""All that speaks the Hub's protocol: the only user of huggingface_hub's private parts, and the only writer.

    environment -> client.make_api -> patience.PatientHub        asked again where that is safe
    Destination -> destination     -> Place                      what is there now, and who may write
    files       -> blobs, xet      -> contents in the Hub's store
    contents    -> upload, commit  -> ONE commit that names them all, guarded by its parent
    commit      -> verify          -> the Hub's hashes against the record's
    commit      -> finish          -> tag, visibility, collection

`reader` reads small files and byte ranges, `rules` and `page` say what the Hub makes of names, metadata and Markdown,
`state` remembers what was sent.
"""
