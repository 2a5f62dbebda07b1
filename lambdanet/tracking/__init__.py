"""MLflow: runs, registry, aliases, exported models. The only package that imports mlflow.

Not a dependency in DVC: it says what lies here.
"""
