// Asks an external scaler as KEDA does, by KEDA's own client, and prints a JSON object: keda_client HOST:PORT GROUP.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	scaler := pb.NewExternalScalerClient(connection)
	within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	metadata := map[string]string{"scalerAddress": os.Args[1], "group": os.Args[2]}
	asked := &pb.ScaledObjectRef{Name: "scaled", Namespace: "ml", ScalerMetadata: metadata}
	active, err := scaler.IsActive(within, asked)
	check(err)
	stream, err := scaler.StreamIsActive(within, asked)
	check(err)
	streamed, err := stream.Recv()
	check(err)
	specs, err := scaler.GetMetricSpec(within, asked)
	check(err)
	spec := specs.MetricSpecs[0]
	values, err := scaler.GetMetrics(within, &pb.GetMetricsRequest{ScaledObjectRef: asked, MetricName: spec.MetricName})
	check(err)
	value := values.MetricValues[0]
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"active": active.Result, "streamed": streamed.Result, "metric": value.MetricName,
		"workers": value.MetricValueFloat / spec.TargetSizeFloat, "whole": value.MetricValue / spec.TargetSize,
	}))
}
