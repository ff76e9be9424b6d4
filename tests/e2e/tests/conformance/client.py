"""What the Python client sees of a server, one line for each step. Arguments: --kubeconfig FILE, or --server URL."""

import sys
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, DynamicApiError

GROUP, VERSION, PLURAL = "moorline.dev", "v1alpha1", "boats"
if sys.argv[1] == "--kubeconfig":
    config.load_kube_config(sys.argv[2])
    api = client.ApiClient()
else:
    api = client.ApiClient(client.Configuration(host=sys.argv[2]))
custom = client.CustomObjectsApi(api)


def boat(name, metres):
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Boat", "metadata": {"name": name}, "spec": {"metres": metres}}


def refusal(what, *args, **kwargs):
    try:
        what(*args, **kwargs)
        return "went well"
    except ApiException as error:
        return f"{error.status} {error.reason}"


made = custom.create_cluster_custom_object(GROUP, VERSION, PLURAL, boat("ada", 10))
print("generation", made["metadata"]["generation"])
print("again", refusal(custom.create_cluster_custom_object, GROUP, VERSION, PLURAL, boat("ada", 10)))
print("invalid", refusal(custom.create_cluster_custom_object, GROUP, VERSION, PLURAL, boat("bob", 401)))
print("patched", custom.patch_cluster_custom_object(GROUP, VERSION, PLURAL, "ada", {"spec": {"metres": 11}})["spec"])
print("status", custom.patch_cluster_custom_object_status(GROUP, VERSION, PLURAL, "ada", {"status": {"place": "here"}})["status"])
print("nobody", refusal(custom.get_cluster_custom_object, GROUP, VERSION, PLURAL, "nobody"))

dynamic = DynamicClient(api)
boats = dynamic.resources.get(api_version=f"{GROUP}/{VERSION}", kind="Boat")
print("resource", boats.name, boats.namespaced, sorted(boats.verbs))
for name in ("bob", "cyd"):
    boats.create(body=boat(name, 5))
page = boats.get(limit=2)
rest = boats.get(limit=2, _continue=page.metadata["continue"])
print("pages", [b.metadata.name for b in page.items + rest.items])
print("by name", [b.metadata.name for b in boats.get(field_selector="metadata.name=bob").items])
applied = boats.server_side_apply(body=boat("dora", 7), field_manager="one")
print("applied", applied.spec.metres, [m.manager for m in applied.metadata.managedFields])
try:
    boats.server_side_apply(body=boat("dora", 8), field_manager="two")
except ConflictError as error:
    print("conflict", error.summary().splitlines()[0])
print("forced", boats.server_side_apply(body=boat("dora", 8), field_manager="two", force_conflicts=True).spec.metres)
stale = boat("ada", 12)
stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
try:
    boats.replace(body=stale)
except DynamicApiError as error:
    print("stale", error.status, error.reason)
print("deleted", boats.delete(name="bob").status)
seen = watch.Watch().stream(
    custom.list_cluster_custom_object, GROUP, VERSION, PLURAL,
    resource_version=made["metadata"]["resourceVersion"], timeout_seconds=1,
)
for event in seen:
    print("event", event["type"], event["object"]["metadata"]["name"], event["object"]["spec"]["metres"])
custom.delete_collection_cluster_custom_object(GROUP, VERSION, PLURAL)
print("left", len(custom.list_cluster_custom_object(GROUP, VERSION, PLURAL)["items"]))
