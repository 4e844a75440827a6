import type { DescFile } from '@bufbuild/protobuf';
import { toBinary } from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import { ReflectionService } from '@grpc/reflection';
import { service as healthService } from 'grpc-health-check';
import type { Service } from '../api/call.ts';

/**
 * gRPC server reflection (v1 and v1alpha), so that a client without our proto files can list and call. The library takes
 * a package definition but reads nothing of it except the serialised files, which the generated code has.
 */
export function reflectionOf(services: readonly Service[]): ReflectionService {
  const files = new Map<string, DescFile>();
  for (const { desc } of services) collect(desc.file, files);
  const fileDescriptorProtos = [...files.values()].map((file) =>
    Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto)),
  );
  const definition = {
    leasehold: { format: 'Protocol Buffer 3 DescriptorProto', type: {}, fileDescriptorProtos },
    health: healthService['Check']!.requestType,
  } as unknown as ConstructorParameters<typeof ReflectionService>[0];
  return new ReflectionService(definition);
}

function collect(file: DescFile, files: Map<string, DescFile>): void {
  if (files.has(file.name)) return;
  for (const dependency of file.dependencies) collect(dependency, files);
  files.set(file.name, file);
}
