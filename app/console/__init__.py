"""The web console: pages, templates and static files. Everything a page does goes through the public protocol and REST.

The pages hold no rights of their own and no server-side state: a page is a shell, the browser brings the token. So the viewer page is at
the same time the example that client developers can read (`static/js/live-client.js` is a whole client of the wire in one file).
"""
