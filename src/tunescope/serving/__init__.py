"""Serving a base and a bank of customizations over HTTP, by the API people already use. ``app.make_app`` makes the
application, ``run.serve`` runs it; both need the extra ``serve``."""
