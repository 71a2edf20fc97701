//! The rules that steer a pod's traffic to the proxy.
