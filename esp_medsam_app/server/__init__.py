"""The only room that knows MONAI Label: the app, its tasks, and how a server is started.

Importing the package itself costs nothing; `app` and what it uses import MONAI Label.
"""
