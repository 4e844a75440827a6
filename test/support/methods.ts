import { readdir } from 'node:fs/promises';
import path from 'node:path';
import type { DescMethod, DescService } from '@bufbuild/protobuf';

/** From the generated descriptors, so that no later service or method can be forgotten here. */
export async function everyMethod(): Promise<DescMethod[]> {
  const folder = path.join(import.meta.dirname, '..', '..', 'src', 'gen', 'leasehold', 'v1');
  const files = (await readdir(folder)).filter((file) => file.endsWith('_service_pb.js'));
  const modules = await Promise.all(
    files.map((file) => import(path.join(folder, file)) as Promise<Record<string, unknown>>),
  );
  const services = modules.flatMap((module) =>
    Object.values(module).filter(
      (value): value is DescService => (value as { kind?: unknown } | undefined)?.kind === 'service',
    ),
  );
  return services.flatMap(({ methods }) => methods);
}
