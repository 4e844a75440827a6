/** Where a caller belongs whose attestation's source names no tenant. */
export const defaultTenant = 'default';

/** Below the broker's URL. The default tenant's issuer is the broker's URL itself. */
export function tenantPath(name: string): string {
  return name === defaultTenant ? '' : `/tenants/${name}`;
}
