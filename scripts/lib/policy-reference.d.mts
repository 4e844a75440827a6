export interface Field {
  path: string;
  schema: { description?: string };
  required: boolean;
  kinds?: string[];
}
export function readSchemas(): unknown[];
export function fieldsOf(schemas: readonly unknown[]): {
  common: Field[];
  byKind: { kind: string; description: string; fields: Field[] }[];
};
export function renderReference(schemas: readonly unknown[]): string;
export function withReference(text: string, reference: string): string;
