import { create, createFileRegistry, setExtension, type DescFile } from '@bufbuild/protobuf';
import {
  DescriptorProtoSchema,
  FileDescriptorProtoSchema,
  MethodDescriptorProtoSchema,
  MethodOptionsSchema,
  ServiceDescriptorProtoSchema,
} from '@bufbuild/protobuf/wkt';
import type { Service } from '../src/api/call.ts';
import { AccessSchema, Role, access, file_leasehold_v1_options } from '../src/gen/leasehold/v1/options_pb.js';

export const echoPath = '/leasehold.bench.EchoService/Echo';

/**
 * An empty unary RPC. Its descriptor is made here and not in `proto/`: it is no part of the contract. Any agent may call
 * it, so that the same chain (identity, rate, access, deadline, telemetry) stands before it as before IssueCredential.
 */
export function echoService(): Service {
  const options = create(MethodOptionsSchema);
  setExtension(options, access, create(AccessSchema, { roles: [Role.AGENT] }));
  const empty = '.leasehold.bench.Empty';
  const file = create(FileDescriptorProtoSchema, {
    name: 'leasehold/bench/echo.proto',
    package: 'leasehold.bench',
    syntax: 'proto3',
    dependency: [file_leasehold_v1_options.proto.name],
    messageType: [create(DescriptorProtoSchema, { name: 'Empty' })],
    service: [
      create(ServiceDescriptorProtoSchema, {
        name: 'EchoService',
        method: [create(MethodDescriptorProtoSchema, { name: 'Echo', inputType: empty, outputType: empty, options })],
      }),
    ],
  });
  const known = new Map<string, DescFile>();
  const add = (dependency: DescFile) => {
    known.set(dependency.proto.name, dependency);
    dependency.dependencies.forEach(add);
  };
  add(file_leasehold_v1_options);
  const desc = createFileRegistry(file, (name) => known.get(name)).getService('leasehold.bench.EchoService')!;
  return { desc, handlers: { echo: () => ({}) } };
}
